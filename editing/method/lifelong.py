"""What an editor keeps of the edits so far: statistics of their keys and value gradients, of a size that does not grow.

An edit counts once, with what was captured before its turn's first shift. Everything here is immutable: a turn makes new objects,
and its commit replaces the old ones. So a turn that fails leaves the statistics as they were.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from editing.config import MethodOptions
from editing.method.features import Features
from editing.method.moments import Moments
from editing.method.preserve import PreservingRidge, empty_ridge
from editing.method.rows import Site, TurnRows
from editing.method.second_moments import SecondMoment
from editing.sharding.collectives import Collectives
from editing.sharding.shards import LinearShard, Shape


@dataclass(frozen=True, slots=True)
class LifelongStatistics:
    """Statistics of all turns so far.

    Attributes:
        moments: By module shape ``(d_in, d_out)``: moments of ``[K | G]`` of the modules edited at the answers.
        subject_moments: The same of the modules edited at the subjects.
        preserved: By module, what the preserving ridge knows of the keys of all tokens; empty if it does not preserve.
        whitening: By module, the second moment of value gradients; empty if they are not whitened.
        remembered: By module with solved targets, the second moment of the keys of all edits, in the form of its ridge.
        rate: The learning rate that a turn has found, if one was to find it.
        is_provisional: Whether that turn had too few edits to tell, so that the first one of enough finds it anew.
    """

    moments: dict[Shape, Moments] = field(default_factory=dict)
    subject_moments: dict[Shape, Moments] = field(default_factory=dict)
    preserved: dict[str, PreservingRidge] = field(default_factory=dict)
    whitening: dict[str, SecondMoment] = field(default_factory=dict)
    remembered: dict[str, PreservingRidge] = field(default_factory=dict)
    rate: float | None = None
    is_provisional: bool = False

    def with_turn(
        self,
        rows: TurnRows,
        group_sizes: Mapping[Site, list[int]],
        shards: Mapping[str, LinearShard],
        options: MethodOptions,
        collectives: Collectives,
    ) -> "LifelongStatistics":
        """These statistics with those of one more turn. All workers call this.

        Args:
            rows: All rows of the turn; with the keys of all tokens if the ridge preserves. Of modules with solved targets only the keys of
                their rows are kept, and only if there are residuals for them.
            group_sizes: At each site, the number of rows of each group that has some.
            shards: What this worker holds of each module.
            options: Which statistics are kept.
            collectives: How partial results become whole.
        """
        result = self._copy()
        for name, shard in shards.items():
            gradients, site = rows.value_gradients[name], rows.site(name)
            keys = Features(shard, "keys", collectives)
            solved = site == "subject" and options.solves_targets
            if name in rows.residuals:
                result._remember(name, rows.keys[name], keys, options)
            if not solved:
                z = torch.cat((rows.keys[name], gradients), dim=1)
                result._add_moments(site, _whole(Moments.of_groups(z, group_sizes[site], options.moments), shard, collectives), shard.shape)
            if options.preserves and not solved:
                result._add_keys(name, rows.tokens[name], keys, options)
            if options.whiten:
                result._add_gradients(name, gradients, Features(shard, "values", collectives))
        return result

    def at(self, site: Site) -> dict[Shape, Moments]:
        """Moments of the modules edited at a site."""
        return self.moments if site == "answer" else self.subject_moments

    def filled_up(self, prior: "LifelongStatistics", shards: Mapping[str, LinearShard], collectives: Collectives) -> "LifelongStatistics":
        """These, where they are of fewer rows or tokens than a prior of the same modules, filled up by it. All workers call this.

        What solved targets remember stays as it is: it holds edits in place, and the prior is not written.
        """
        preserved = {
            name: ridge.filled_up(prior.preserved[name], Features(shards[name], "keys", collectives)) for name, ridge in self.preserved.items()
        }
        return replace(
            self,
            moments={shape: moments.filled_up(prior.moments[shape]) for shape, moments in self.moments.items()},
            subject_moments={shape: moments.filled_up(prior.subject_moments[shape]) for shape, moments in self.subject_moments.items()},
            preserved=preserved,
            whitening={name: second.filled_up(prior.whitening[name]) for name, second in self.whitening.items()},
        )

    def _copy(self) -> "LifelongStatistics":
        return LifelongStatistics(
            moments=dict(self.moments),
            subject_moments=dict(self.subject_moments),
            preserved=dict(self.preserved),
            whitening=dict(self.whitening),
            remembered=dict(self.remembered),
            rate=self.rate,
            is_provisional=self.is_provisional,
        )

    def _add_moments(self, site: Site, added: Moments, shape: Shape) -> None:
        moments = self.at(site)
        moments[shape] = moments[shape].merge(added) if shape in moments else added

    def _add_keys(self, name: str, tokens: Tensor, features: Features, options: MethodOptions) -> None:
        ridge = self.preserved.get(name) or empty_ridge(options.preserve, features, options.preserve_rank, tokens.device)
        self.preserved[name] = ridge.update(tokens, features)

    def _remember(self, name: str, keys: Tensor, features: Features, options: MethodOptions) -> None:
        before = self.remembered.get(name) or empty_ridge(options.preserve, features, options.preserve_rank, keys.device)
        self.remembered[name] = before.update(keys, features)

    def _add_gradients(self, name: str, gradients: Tensor, features: Features) -> None:
        second = self.whitening.get(name) or SecondMoment.empty(features.num_features, gradients.device)
        self.whitening[name] = second.add(features.broadcast(features.all_gather(gradients)))


def _whole(held: Moments, shard: LinearShard, collectives: Collectives) -> Moments:
    """Moments of all features, given those of the held ones.

    Every shard keeps all of them. So a stored state does not depend on how the model is sharded, and modules of one shape share
    moments even if they are sliced along different axes.
    """
    if shard.axis is None:
        return held
    mean, sum_of_squares = collectives.all_reduce_sum(shard.scatter(torch.stack((held.mean, held.sum_of_squares))))
    return Moments(held.count, mean, sum_of_squares)
