"""How a turn's partial results become whole ones: the only thing that differs between one machine and many.

A model may be cut into shards, each holding a :class:`~editing.sharding.shards.LinearShard` of every edited module, and copied into
replicas, each capturing some of a turn's groups. Of all that a turn computes, only thin things then need the others'
part: moments (vectors), Gram matrices (n x n), squared norms (n) and single numbers. Everything that steers a turn comes
out of one of these methods, so that all shards decide alike, bit for bit: none goes on where another one stops.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from editing.sharding.shards import LinearShard


class Collectives(Protocol):
    """What a worker asks of its fellow workers. All of them call the same methods in the same order.

    Attributes:
        replica: This worker's replica, from 0.
        num_replicas: Copies of the model that capture a share of every turn each.
    """

    replica: int
    num_replicas: int

    def all_gather_rows(self, table: Tensor, shares: Sequence[Tensor]) -> Tensor:
        """All lines of a table ``(n, f)`` of which each replica has some.

        Args:
            table: This replica's lines.
            shares: Per replica the positions of its lines.
        """
        ...

    def all_reduce_sum(self, partial: Tensor) -> Tensor:
        """Sum over the shards."""
        ...

    def broadcast(self, value: Tensor) -> Tensor:
        """The first worker's value of what all workers have computed, each with its own rounding."""
        ...

    def all_gather_weight(self, held: Tensor, shard: LinearShard) -> Tensor:
        """The whole ``(d_out, d_in)`` weight of which each shard holds a part, or what else is sliced alike (:meth:`LinearShard.join`)."""
        ...

    def run_on_first(self, action: Callable[[], None]) -> None:
        """Let the first worker do something, such as write a file, while the others wait.

        Raises:
            UltraEditError: It failed; on every worker.
        """
        ...


class SingleWorker:
    """One worker that holds the whole model and sees every row: nothing to do."""

    replica = 0
    num_replicas = 1

    def all_gather_rows(self, table: Tensor, shares: Sequence[Tensor]) -> Tensor:
        return table

    def all_reduce_sum(self, partial: Tensor) -> Tensor:
        return partial

    def broadcast(self, value: Tensor) -> Tensor:
        return value

    def all_gather_weight(self, held: Tensor, shard: LinearShard) -> Tensor:
        return held

    def run_on_first(self, action: Callable[[], None]) -> None:
        action()
