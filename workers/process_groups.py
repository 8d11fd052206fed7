"""The processes that hold the shards of a model and its replicas: their process groups, and the collectives of a turn."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from editing.errors import InputError, UltraEditError
from editing.files import pretrained
from editing.sharding.shards import LinearShard


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which shard of which replica a process holds, and where the others are.

    Attributes:
        rank: This shard, from 0.
        num_shards: Shards that together hold the model.
        replica: This copy of the model, from 0.
        num_replicas: Copies of the model. One shard of one replica needs no others and no group.
        address: Host of the first process.
        port: A free port on it.
        local_rank: Index of this process's GPU among those that it sees: 0 if it sees one, as a Ray actor does.
        local_shards: How many of all processes run on this machine; ``None`` if all do.
        timeout: Seconds after which a collective that waits for a dead or stuck process fails.
    """

    rank: int = 0
    num_shards: int = 1
    replica: int = 0
    num_replicas: int = 1
    address: str = "127.0.0.1"
    port: int = 29500
    local_rank: int = 0
    local_shards: int | None = None
    timeout: float = 600.0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.num_shards:
            raise InputError(f"shards: expected a rank from 0 to {self.num_shards - 1}, found {self.rank}")
        if not 0 <= self.replica < self.num_replicas:
            raise InputError(f"replicas: expected a replica from 0 to {self.num_replicas - 1}, found {self.replica}")

    @property
    def is_single_process(self) -> bool:
        return self.num_shards == self.num_replicas == 1

    @property
    def world_rank(self) -> int:
        """This process among all of all replicas; a replica's shards are neighbours."""
        return self.replica * self.num_shards + self.rank

    @property
    def world_size(self) -> int:
        return self.num_replicas * self.num_shards

    def __str__(self) -> str:
        return f"shard {self.rank} of {self.num_shards}" + (f" of replica {self.replica}" if self.num_replicas > 1 else "")


@dataclass(frozen=True)
class Groups:
    """The process groups of one process.

    Attributes:
        world: All processes of all replicas.
        shards: The shards of this replica.
        replicas: The same shard of all replicas.
    """

    world: dist.ProcessGroup
    shards: dist.ProcessGroup
    replicas: dist.ProcessGroup


def local_device(name: str, placement: Placement) -> torch.device:
    """This process's device: ``cuda`` and ``auto`` mean its own GPU."""
    device = pretrained.choose_device(name)
    if device.type == "cuda" and device.index is None:
        return pretrained.choose_device(f"cuda:{placement.local_rank}")
    return device


def join_groups(placement: Placement, device: torch.device) -> Groups:
    """Initialize torch.distributed, with gloo on the CPU and nccl on GPUs, and make the groups. All processes call this, each of them once or more.

    Raises:
        InputError: The other processes did not connect within the timeout.
    """
    set_environment(placement, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _init_process_group(placement, device)
    world = dist.group.WORLD
    assert world is not None
    if placement.num_replicas == 1:
        return Groups(world, world, _group_of_one(placement, world))
    if placement.num_shards == 1:
        return Groups(world, _group_of_one(placement, world), world)
    shards, replicas = range(placement.num_shards), range(placement.num_replicas)
    rows = [[r * placement.num_shards + s for s in shards] for r in replicas]
    columns = [[r * placement.num_shards + s for r in replicas] for s in shards]
    return Groups(world, _own_of_new_groups(rows, placement.replica), _own_of_new_groups(columns, placement.rank))


def _init_process_group(placement: Placement, device: torch.device) -> None:
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{placement.address}:{placement.port}",
            rank=placement.world_rank,
            world_size=placement.world_size,
            timeout=timedelta(seconds=placement.timeout),
        )
    except (dist.DistError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{placement} could not connect to the other processes at {placement.address}:{placement.port}: {reason}") from None


def _group_of_one(placement: Placement, world: dist.ProcessGroup) -> dist.ProcessGroup:
    return _own_of_new_groups([[rank] for rank in range(placement.world_size)], placement.world_rank)


def _own_of_new_groups(groups: list[list[int]], index: int) -> dist.ProcessGroup:
    """Make several groups, as every process has to, and return the one that this process is in."""
    made: list[dist.ProcessGroup] = [dist.new_group(ranks) for ranks in groups]
    return made[index]


def leave_groups() -> None:
    """Undo :func:`join_groups`."""
    if dist.is_initialized():
        dist.destroy_process_group()


def set_environment(placement: Placement, device: torch.device) -> None:
    """Set the rank and the sizes for DeepSpeed, which reads them from the environment when it is imported and when it shards."""
    local = placement.world_size if placement.local_shards is None else placement.local_shards
    os.environ |= {
        "RANK": str(placement.world_rank),
        "WORLD_SIZE": str(placement.world_size),
        "LOCAL_RANK": str(placement.local_rank),  # an index among the GPUs that this process sees, not among the machine's
        # its shared-memory sums, if it uses them, are set up only if this equals WORLD_SIZE, and crash if it is not set
        "LOCAL_SIZE": str(local),
        "MASTER_ADDR": placement.address,
        "MASTER_PORT": str(placement.port),
        "DS_ACCELERATOR": device.type,  # it would take a GPU where there is one
    }


class FirstRankFailed(UltraEditError):
    """Rank 0 failed in a step that it does for all ranks."""


class GroupCollectives:
    """Collectives among the processes of one run; see :class:`editing.sharding.collectives.Collectives`.

    Each sum or copy is one collective, so all processes have the same bits. Only :meth:`all_gather_weight` moves anything large.
    """

    def __init__(self, placement: Placement, groups: Groups, device: torch.device) -> None:
        self._groups, self._device = groups, device
        self.replica, self.num_replicas = placement.replica, placement.num_replicas
        self._first = placement.world_rank == 0

    def all_gather_rows(self, table: Tensor, shares: Sequence[Tensor]) -> Tensor:
        if self.num_replicas == 1:
            return table
        padded = table.new_zeros(max(map(len, shares)), table.shape[1], device=self._device)
        padded[: len(table)] = table
        parts = [torch.empty_like(padded) for _ in shares]
        dist.all_gather(parts, padded, group=self._groups.replicas)
        whole = table.new_empty(sum(map(len, shares)), table.shape[1])
        for share, part in zip(shares, parts, strict=True):
            whole[share.to(whole.device)] = part[: len(share)].to(whole.device)
        return whole

    def all_reduce_sum(self, partial: Tensor) -> Tensor:
        mine = partial.to(self._device, copy=True).contiguous()
        dist.all_reduce(mine, group=self._groups.shards)
        return mine.to(partial.device)

    def broadcast(self, value: Tensor) -> Tensor:
        mine = value.to(self._device, copy=True).contiguous()
        dist.broadcast(mine, src=0, group=self._groups.world)
        return mine.to(value.device)

    def all_gather_weight(self, held: Tensor, shard: LinearShard) -> Tensor:
        if not shard.axis:
            return held
        dim = 1 if shard.axis == "keys" else 0
        sizes = [sum(len(r) for r in ranges) for ranges in shard.held]
        padded = torch.zeros(_with_size(held.shape, dim, max(sizes)), dtype=held.dtype, device=self._device)  # shards can be uneven
        padded.narrow(dim, 0, held.shape[dim]).copy_(held)
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self._groups.shards)
        return shard.gather([whole.narrow(dim, 0, size) for whole, size in zip(parts, sizes, strict=True)]).to(held.device)

    def run_on_first(self, action: Callable[[], None]) -> None:
        failure: Exception | None = None
        if self._first:
            try:
                action()
            except Exception as error:  # the other ranks must know, or they would wait for the timeout
                failure = error
        try:
            failed = bool(self.broadcast(torch.tensor([float(failure is not None)])))
        finally:  # a broadcast that fails too must not hide this rank's own error
            if failure is not None:
                raise failure
        if failed:
            raise FirstRankFailed("rank 0 failed in a step that all ranks wait for; see its own error")


def _with_size(shape: torch.Size, dim: int, size: int) -> list[int]:
    return [size if i == dim else n for i, n in enumerate(shape)]
