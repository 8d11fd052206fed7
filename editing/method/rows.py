"""The rows of a turn: what capture gives to the method.

A row is a token position at which a module is edited. The published method takes its rows where the answer begins, and nowhere
else. A model keeps what it knows of a subject in the hidden states at the subject's last token: the MLPs of lower layers write it
there, and attention reads it further up (Meng et al. 2022, ROME and MEMIT). So a module may be edited there instead:

    The river Struma flows into the Aegean
                   s            a   a         s: row of the modules edited at the subject, one an edit
                                              a: rows of the modules edited at the answer

One pass forward and back gives both kinds, and both go through the same solve. A row at the subject has the key that the module
sees there and the gradient of the same loss. It has moments of its own, since these gradients have another scale. A rephrased
prompt ends differently but names the same subject, so an edit at the subject generalizes to it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from editing.sharding.collectives import Collectives
from editing.sharding.shards import LinearShard

Site = Literal["answer", "subject"]
"""Where in a sequence a module is edited: at the positions that predict the answer, or at the last token of the subject."""

SITES: tuple[Site, ...] = ("answer", "subject")


@dataclass(frozen=True, slots=True)
class TurnRows:
    """A turn's rows in the order of its sequences: ``n`` rows at the answers and ``s`` at the subjects.

    Attributes:
        sites: Per module, at which rows it is edited; at the answers if it is not named.
        keys: Per module ``(n, d_in)`` or ``(s, d_in)`` float32, or a shard's slice: the module's input at each of its rows.
        value_gradients: Per module ``(n, d_out)`` or ``(s, d_out)`` float32, or a shard's slice: gradient of the group's loss at
            the module's output.
        losses: ``(n,)`` float32, cross-entropy of each row in nats, before the shift.
        correct: ``(n,)`` bool, whether the row's likeliest token is the answer's.
        pending: ``(n,)`` bool, whether the answer's token does not lead by the margin yet, so that a further pass has work here.
        tokens: Per module ``(t, d_in)`` float32, the keys of all tokens in the order of the sequences; empty if not captured.
        outputs: Per module with solved targets ``(s, d_out)`` float32, its output at each of its rows; empty if not captured.
        residuals: Per module with solved targets ``(s, d_out)`` float32, what its output at each row is to change by; empty if none are solved.
    """

    sites: Mapping[str, Site]
    keys: dict[str, Tensor]
    value_gradients: dict[str, Tensor]
    losses: Tensor
    correct: Tensor
    pending: Tensor
    tokens: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    residuals: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def empty(
        cls,
        shards: Mapping[str, LinearShard],
        sites: Mapping[str, Site],
        num_rows: Mapping[Site, int],
        *,
        num_tokens: int | None = None,
        outputs: Collection[str] = (),
        device: torch.device | str = "cpu",
    ) -> "TurnRows":
        """Uninitialized memory for a number of rows at each site, for the keys of a number of tokens or of none, and for outputs of some modules."""
        n = num_rows["answer"]
        counts = {name: num_rows[sites.get(name, "answer")] for name in shards}
        return cls(
            sites=sites,
            keys={name: torch.empty(counts[name], shard.num_keys, device=device) for name, shard in shards.items()},
            value_gradients={name: torch.empty(counts[name], shard.num_values, device=device) for name, shard in shards.items()},
            losses=torch.empty(n, device=device),
            correct=torch.empty(n, dtype=torch.bool, device=device),
            pending=torch.empty(n, dtype=torch.bool, device=device),
            tokens={} if num_tokens is None else {name: torch.empty(num_tokens, shard.num_keys, device=device) for name, shard in shards.items()},
            outputs={name: torch.empty(counts[name], shards[name].num_values, device=device) for name in outputs},
        )

    def site(self, name: str) -> Site:
        """Where a module is edited."""
        return self.sites.get(name, "answer")

    def updated(self, positions: Mapping[Site, Tensor], newer: "TurnRows") -> "TurnRows":
        """These rows, with what a later pass has captured of some of them. Losses and correctness stay those before the first shift.

        The tensors are new, since the shifts of earlier passes hold the old keys.

        Args:
            positions: At each site, the positions of the newer rows among these.
            newer: What the later pass has captured.
        """
        positions = {site: numbers.to(self.losses.device) for site, numbers in positions.items()}
        keys, gradients = (
            {name: values.index_copy(0, positions[self.site(name)], found[name]) for name, values in held.items()}
            for held, found in ((self.keys, newer.keys), (self.value_gradients, newer.value_gradients))
        )
        return replace(self, keys=keys, value_gradients=gradients, pending=self.pending.index_copy(0, positions["answer"], newer.pending))

    def gathered(self, collectives: Collectives, shares: Mapping[Site, Sequence[Tensor]]) -> "TurnRows":
        """All rows of the turn in its order, given those of each replica. The keys of all tokens stay this replica's.

        Args:
            collectives: How the replicas' rows come together.
            shares: At each site, per replica, the positions of its rows in the turn.
        """
        if collectives.num_replicas == 1:
            return self  # every shard runs every sequence
        single = torch.stack([values.float() for values in (self.losses, self.correct, self.pending)], dim=1)
        single, *at_answers = _gather_tables(collectives, [single, *self._tables("answer")], shares["answer"])
        at_subjects = _gather_tables(collectives, self._tables("subject"), shares["subject"])
        tables = {site: iter(found) for site, found in zip(SITES, (at_answers, at_subjects), strict=True)}
        keys, gradients, outputs = ({name: next(tables[self.site(name)]) for name in held} for held in self._held)
        losses, correct, pending = (column.contiguous() for column in single.unbind(1))
        return replace(self, keys=keys, value_gradients=gradients, outputs=outputs, losses=losses, correct=correct.bool(), pending=pending.bool())

    def count_not_finite(self, owners: Mapping[Site, Tensor], num_sequences: int) -> Tensor:
        """``(num_sequences,)`` float32: 0 for each sequence of which everything is finite, else 1 or more.

        Args:
            owners: At each site, the sequence of each row.
            num_sequences: Sequences of the turn.
        """
        finite = {site: torch.ones(len(row_owners), dtype=torch.bool, device=self.losses.device) for site, row_owners in owners.items()}
        finite["answer"] &= self.losses.isfinite()
        for held in (self.keys, self.value_gradients):
            for name, values in held.items():
                finite[self.site(name)] &= values.isfinite().all(1)
        found = torch.zeros(num_sequences, device=self.losses.device)
        for site, row_owners in owners.items():
            if len(row_owners):
                found.index_add_(0, row_owners.to(found.device), (~finite[site]).float())
        found.clamp_(max=1.0)
        for keys in self.tokens.values():
            found += (~keys.isfinite().all()).float()  # which sequence it was cannot be told from them
        return found

    @property
    def _held(self) -> tuple[dict[str, Tensor], ...]:
        """What there is of each row, by module."""
        return self.keys, self.value_gradients, self.outputs

    def _tables(self, site: Site) -> list[Tensor]:
        return [values for held in self._held for name, values in held.items() if self.site(name) == site]


def _gather_tables(collectives: Collectives, tables: list[Tensor], shares: Sequence[Tensor]) -> list[Tensor]:
    """Gather tables of equally many rows in one collective."""
    if not tables:
        return []
    whole = collectives.all_gather_rows(torch.cat(tables, dim=1), shares)
    return [columns.contiguous() for columns in whole.split([table.shape[1] for table in tables], dim=1)]
