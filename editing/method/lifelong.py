"""What an editor keeps of the edits so far: statistics of their keys and value gradients, of a size that does not grow.

An edit counts once, with what was captured before its turn's first shift. Everything here is immutable: a turn makes new
objects, and the commit puts them in the old ones' place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from editing.config import MethodOptions
from editing.method.moments import Moments
from editing.method.preserve import PreservingRidge, begin, is_exact
from editing.method.second_moments import Features, SecondMoment
from editing.model.rows import TurnRows
from editing.model.tokenization import Site
from editing.sharding.collectives import Collectives
from editing.sharding.shards import LinearShard, Shape


@dataclass(frozen=True, slots=True)
class Lifelong:
    """Statistics of all turns so far.

    Attributes:
        moments: By module shape ``(d_in, d_out)``, of keys and value gradients together, of the modules edited at the answers.
        subject_moments: The same of those edited at the subjects.
        preserved: By module, of the keys of all tokens, where the ridge preserves.
        whitening: By module, of value gradients, where they are whitened.
    """

    moments: dict[Shape, Moments] = field(default_factory=dict)
    subject_moments: dict[Shape, Moments] = field(default_factory=dict)
    preserved: dict[str, PreservingRidge] = field(default_factory=dict)
    whitening: dict[str, SecondMoment] = field(default_factory=dict)

    def with_turn(
        self,
        rows: TurnRows,
        group_sizes: Mapping[Site, list[int]],
        shards: Mapping[str, LinearShard],
        options: MethodOptions,
        collectives: Collectives,
    ) -> "Lifelong":
        """These and one more turn's. All workers call this.

        Args:
            rows: All rows of the turn, with the keys of all tokens where the ridge preserves.
            group_sizes: At each site, rows of each group that has some.
            shards: What this worker holds of each module.
            options: Which statistics are wanted.
            collectives: How partial results become whole.
        """
        at_answers, at_subjects = dict(self.moments), dict(self.subject_moments)
        preserved, whitening = dict(self.preserved), dict(self.whitening)
        for name, shard in shards.items():
            keys, gradients, site = rows.keys[name], rows.value_gradients[name], rows.site(name)
            added = _whole(Moments.of_groups(torch.cat((keys, gradients), dim=1), group_sizes[site], options.moments), shard, collectives)
            moments = at_answers if site == "answer" else at_subjects
            before = moments.get(shard.shape)
            moments[shard.shape] = before.merge(added) if before else added
            if options.preserve != "off":
                features = Features(shard, "keys", collectives)
                ridge = preserved.get(name) or begin(options.preserve, features, options.preserve_rank, keys.device)
                preserved[name] = ridge.update(rows.tokens[name], features)
            if options.whiten:
                features = Features(shard, "values", collectives)
                second = whitening.get(name) or SecondMoment.empty(features.num_features, gradients.device)
                whitening[name] = second.add(features.broadcast(features.whole(gradients)))
        return Lifelong(at_answers, at_subjects, preserved, whitening)

    def at(self, site: Site) -> dict[Shape, Moments]:
        """Moments of the modules edited at a site."""
        return self.moments if site == "answer" else self.subject_moments


def second_moments_bytes(shape: Shape, options: MethodOptions, num_tokens: int) -> int:
    """Bytes of what is kept of one module beside its moments, old and new while a turn is made, with the keys of the turn's tokens."""
    (d_in, d_out), held = shape, 0
    if options.preserve != "off":
        lines = d_in if is_exact(options.preserve, d_in) else 3 * options.preserve_rank  # a sketch grows by a block before it shrinks
        kept = 3 + options.preserves_text + (options.passes > 1)  # further passes solve the first one's system
        held += kept * 8 * lines * d_in + 4 * num_tokens * d_in
    return held + (3 * 8 * d_out**2 if options.whiten else 0)


def _whole(held: Moments, shard: LinearShard, collectives: Collectives) -> Moments:
    """Moments of all features, given those of the held ones. Kept whole on every shard, so that a state does not depend on
    how the model is cut, and modules of one shape can share them however each is cut."""
    if shard.axis is None:
        return held
    mean, sum_of_squares = collectives.all_reduce_sum(shard.spread(torch.stack((held.mean, held.sum_of_squares))))
    return Moments(held.count, mean, sum_of_squares)
