"""How a turn's partial results become whole ones: the only thing that differs between one machine and many.

A model may be cut into shards, each holding slices of every edited module, and copied into replicas, each capturing
some of a turn's groups. Of all that a turn computes, only two things then need the others' part.
"""

from typing import Protocol

from torch import Tensor

from editing.capture import TurnRows


class Reductions(Protocol):
    """What a worker asks of its fellow workers in one turn."""

    def gather_rows(self, rows: TurnRows) -> TurnRows:
        """All rows of the turn in the turn's order, given this replica's rows."""
        ...

    def sum_over_key_slices(self, partial: Tensor, module: str) -> Tensor:
        """Sum of a quantity that is additive over a module's input features, over the shards that slice them."""
        ...


class NoReductions:
    """One worker that holds the whole model and sees every row: nothing to do."""

    def gather_rows(self, rows: TurnRows) -> TurnRows:
        return rows

    def sum_over_key_slices(self, partial: Tensor, module: str) -> Tensor:
        return partial
