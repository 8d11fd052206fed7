"""How the partial results of a turn become whole: the only thing that differs between one machine and many.

A model may be cut into shards, each with a :class:`~editing.sharding.shards.LinearShard` of every edited module, and copied into
replicas, each of which captures some of a turn's groups. Only thin things then have to travel: moments (vectors), Gram matrices
(n x n), squared norms (n) and single numbers. Every decision in a turn is taken on the result of one of these methods. So all
workers decide alike, bit for bit, and none goes on where another one stops.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from editing.sharding.shards import LinearShard


class Collectives(Protocol):
    """What a worker asks of the other workers. All of them call the same methods in the same order.

    Attributes:
        replica: This worker's replica, from 0.
        num_replicas: Copies of the model, each of which captures a share of every turn.
    """

    replica: int
    num_replicas: int

    def all_gather_rows(self, table: Tensor, shares: Sequence[Tensor]) -> Tensor:
        """All rows of a table ``(n, f)``, given the rows of each replica.

        Args:
            table: This replica's rows.
            shares: Per replica, the positions of its rows.
        """
        ...

    def all_reduce_sum(self, partial: Tensor) -> Tensor:
        """Sum over the shards."""
        ...

    def broadcast(self, value: Tensor) -> Tensor:
        """The first worker's value of something that every worker has computed, each with its own rounding."""
        ...

    def all_gather_weight(self, held: Tensor, shard: LinearShard) -> Tensor:
        """The whole ``(d_out, d_in)`` weight, given this shard's slice; or anything else that :meth:`LinearShard.gather` takes."""
        ...

    def run_on_first(self, action: Callable[[], None]) -> None:
        """Let the first worker do something, such as write a file, while the others wait.

        Raises:
            UltraEditError: It failed. Raised on every worker.
        """
        ...


class SingleWorker:
    """One worker that holds the whole model and sees every row: nothing travels."""

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


def frobenius_norms(squared: Mapping[str, Tensor], shards: Mapping[str, LinearShard], collectives: Collectives) -> dict[str, float]:
    """Frobenius norms of things of the weights' shapes, by module; the same numbers on all workers. The host waits for the device once.

    Args:
        squared: Their squared norms, float64, over the slices that this worker holds.
        shards: What this worker holds of each module.
        collectives: How the shards' sums become whole.
    """
    sums = [(collectives.all_reduce_sum if shards[name].axis else collectives.broadcast)(square) for name, square in squared.items()]
    return dict(zip(squared, torch.stack(sums).clamp(min=0).sqrt().tolist(), strict=True)) if sums else {}


def rows_of_first_replica(table: Tensor, collectives: Collectives) -> Tensor:
    """The first replica's bits of a table ``(n, f)`` that every replica has computed, each with its own rounding."""
    shares = [torch.arange(len(table)), *[torch.arange(0)] * (collectives.num_replicas - 1)]
    return collectives.all_gather_rows(table[: len(shares[collectives.replica])], shares)
