"""Shards and replicas as threads of one process: real collectives over tensors in memory, for tests without process groups."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from editing.sharding.shards import LinearShard

T = TypeVar("T")
_TIMEOUT = 180.0


class _Meeting:
    """Where all workers exchange one value each."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count, timeout=_TIMEOUT)
        self._values: list[Any] = [None] * count

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self._values[rank] = value
        self._barrier.wait()
        values = list(self._values)
        self._barrier.wait()
        return values

    def leave(self) -> None:
        self._barrier.abort()


class EmulatedWorker:
    """One worker's :class:`editing.sharding.collectives.Collectives`."""

    def __init__(self, meeting: _Meeting, shard: int, num_shards: int, replica: int, num_replicas: int) -> None:
        self._meeting = meeting
        self.shard, self.num_shards = shard, num_shards
        self.replica, self.num_replicas = replica, num_replicas
        self.rank = replica * num_shards + shard

    def all_gather_rows(self, table: Tensor, shares: Sequence[Tensor]) -> Tensor:
        tables = self._meeting.exchange(self.rank, table)[self.shard :: self.num_shards]
        whole = table.new_empty(sum(map(len, shares)), table.shape[1])
        for share, rows in zip(shares, tables, strict=True):
            whole[share] = rows
        return whole

    def all_reduce_sum(self, partial: Tensor) -> Tensor:
        return torch.stack(self._of_replica(partial)).sum(0)

    def broadcast(self, value: Tensor) -> Tensor:
        return self._meeting.exchange(self.rank, value)[0].clone()

    def all_gather_weight(self, held: Tensor, shard: LinearShard) -> Tensor:
        return shard.gather(self._of_replica(held))

    def run_on_first(self, action: Callable[[], None]) -> None:
        if self.rank == 0:
            action()
        self._meeting.exchange(self.rank, None)

    def _of_replica(self, value: Tensor) -> list[Tensor]:
        first = self.replica * self.num_shards
        return self._meeting.exchange(self.rank, value)[first : first + self.num_shards]


def run_workers(action: Callable[[EmulatedWorker], T], *, num_shards: int = 1, num_replicas: int = 1) -> list[T]:
    """Run an action on all workers at the same time; its results by rank. The first error of any of them is raised."""
    count = num_shards * num_replicas
    meeting = _Meeting(count)

    def run(rank: int) -> T:
        try:
            return action(EmulatedWorker(meeting, rank % num_shards, num_shards, rank // num_shards, num_replicas))
        except BaseException:
            meeting.leave()
            raise

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run, rank) for rank in range(count)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
