"""What the rows of a turn leave behind, at each site (:data:`editing.model.tokenization.Site`).

The published method takes keys and value gradients where the answer begins and no place else. What a model knows of a subject
is written into the hidden states at the subject's last token by the MLPs of the layers below, and read from there by attention
further up (Meng et al. 2022, ROME and MEMIT). So a module may be edited there instead:

    The river Struma flows into the Aegean
                   s            a   a         s: row of the modules at the subject, one an edit; a: rows of those at the answer

The same one pass forward and back gives both, and the same solve: a row at the subject has the key that the module sees there and
the gradient of the same loss, with moments of its own, since these gradients are of another size. A rephrased prompt ends
otherwise, but names the same subject: that is what generalizes, and what another subject's prompt does not see.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from editing.model.tokenization import SITES, AnswerSequence, Site, row_offsets
from editing.sharding.collectives import Collectives
from editing.sharding.shards import shard_of


@dataclass(frozen=True, slots=True)
class TurnRows:
    """What one turn's rows left behind, in the order of the turn's sequences: ``n`` rows at the answers, and ``s`` at the subjects.

    Attributes:
        sites: Per module, at which rows it is edited; a module that is not named, at the answers.
        keys: Per module ``(n, d_in)`` float32, or ``(s, d_in)``, or a shard's part of it: the module's input at each of its rows.
        value_gradients: Per module ``(n, d_out)`` float32, or ``(s, d_out)``, or a shard's part of it: gradient of the group's loss
            at the module's output.
        losses: ``(n,)`` float32, cross-entropy of each row in nats, before the shift.
        correct: ``(n,)`` bool, whether the row's likeliest token is the answer's.
        settled: ``(n,)`` bool, whether it is so by at least the margin, and a further pass has nothing to do here.
        tokens: Per module ``(t, d_in)`` float32, the keys of all tokens in the order of the turn's sequences; empty if not asked for.
    """

    sites: Mapping[str, Site]
    keys: dict[str, Tensor]
    value_gradients: dict[str, Tensor]
    losses: Tensor
    correct: Tensor
    settled: Tensor
    tokens: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def empty(
        cls,
        modules: Mapping[str, nn.Linear],
        sites: Mapping[str, Site],
        num_rows: Mapping[Site, int],
        *,
        num_tokens: int | None,
        device: torch.device,
    ) -> "TurnRows":
        """Room for so many rows at each site, and for the keys of so many tokens or of none."""
        n, shards = num_rows["answer"], {name: shard_of(module) for name, module in modules.items()}
        counts = {name: num_rows[sites.get(name, "answer")] for name in modules}
        return cls(
            sites=sites,
            keys={name: torch.empty(counts[name], shard.num_keys, device=device) for name, shard in shards.items()},
            value_gradients={name: torch.empty(counts[name], shard.num_values, device=device) for name, shard in shards.items()},
            losses=torch.empty(n, device=device),
            correct=torch.empty(n, dtype=torch.bool, device=device),
            settled=torch.empty(n, dtype=torch.bool, device=device),
            tokens={} if num_tokens is None else {name: torch.empty(num_tokens, shard.num_keys, device=device) for name, shard in shards.items()},
        )

    def site(self, name: str) -> Site:
        """Where a module is edited."""
        return self.sites.get(name, "answer")

    def updated(self, lines: Mapping[Site, Tensor], newer: "TurnRows") -> "TurnRows":
        """With what a later pass has captured of some rows. Losses and correctness stay those before the first shift.

        The tensors are new: the shifts of earlier passes hold the old keys.
        """
        lines = {site: numbers.to(self.losses.device) for site, numbers in lines.items()}
        keys, gradients = (
            {name: values.index_copy(0, lines[self.site(name)], found[name]) for name, values in held.items()}
            for held, found in ((self.keys, newer.keys), (self.value_gradients, newer.value_gradients))
        )
        return replace(self, keys=keys, value_gradients=gradients, settled=self.settled.index_copy(0, lines["answer"], newer.settled))

    def gathered(self, collectives: Collectives, shares: Mapping[Site, Sequence[Tensor]]) -> "TurnRows":
        """All rows of the turn in the turn's order, given each replica's. Tokens stay this replica's.

        Args:
            collectives: How it comes together.
            shares: At each site, per replica the positions of its rows in the turn.
        """
        if collectives.num_replicas == 1:
            return self  # every shard runs every sequence
        single = torch.stack([values.float() for values in (self.losses, self.correct, self.settled)], dim=1)
        single, *at_answers = _together(collectives, [single, *self._held("answer")], shares["answer"])
        at_subjects = _together(collectives, list(self._held("subject")), shares["subject"])
        tables = {site: iter(found) for site, found in zip(SITES, (at_answers, at_subjects), strict=True)}
        keys, gradients = ({name: next(tables[self.site(name)]) for name in held} for held in (self.keys, self.value_gradients))
        losses, correct, settled = single.unbind(1)
        return replace(self, keys=keys, value_gradients=gradients, losses=losses.contiguous(), correct=correct.bool(), settled=settled.bool())

    def broken(self, sequences: Sequence[AnswerSequence]) -> Tensor:
        """``(e,)`` float32, 1 for each sequence of which something is not finite, else 0."""
        finite = {site: torch.ones(len(row_of), dtype=torch.bool, device=self.losses.device) for site, row_of in self._owners(sequences)}
        finite["answer"] &= self.losses.isfinite()
        for held in (self.keys, self.value_gradients):
            for name, values in held.items():
                finite[self.site(name)] &= values.isfinite().all(1)
        found = torch.zeros(len(sequences), device=self.losses.device)
        for site, owners in self._owners(sequences):
            found[owners.to(found.device)[~finite[site]]] = 1.0
        return found

    def _owners(self, sequences: Sequence[AnswerSequence]) -> Iterator[tuple[Site, Tensor]]:
        for site in SITES:
            yield site, owners(sequences, site)

    def _held(self, site: Site) -> Iterator[Tensor]:
        for held in (self.keys, self.value_gradients):
            yield from (values for name, values in held.items() if self.site(name) == site)


def lines_of(chosen: Sequence[int], offsets: Sequence[int]) -> Tensor:
    """Lines of a table that belong to chosen sequences, where sequence ``i`` has those from ``offsets[i]`` up to ``offsets[i + 1]``."""
    return torch.tensor([line for i in chosen for line in range(offsets[i], offsets[i + 1])], dtype=torch.int64)


def rows_of(chosen: Sequence[int], sequences: Sequence[AnswerSequence]) -> dict[Site, Tensor]:
    """Numbers of the rows of chosen sequences, at each site."""
    return {site: lines_of(chosen, row_offsets(sequences, site)) for site in SITES}


def owners(sequences: Sequence[AnswerSequence], site: Site) -> Tensor:
    """To which sequence each row at a site belongs."""
    counts = torch.tensor([len(sequence.rows(site)) for sequence in sequences], dtype=torch.int64)
    return torch.arange(len(sequences)).repeat_interleave(counts)


def _together(collectives: Collectives, tables: list[Tensor], shares: Sequence[Tensor]) -> list[Tensor]:
    """Tables of as many lines, in one go."""
    if not tables:
        return []
    whole = collectives.all_gather_rows(torch.cat(tables, dim=1), shares)
    return [columns.contiguous() for columns in whole.split([table.shape[1] for table in tables], dim=1)]
