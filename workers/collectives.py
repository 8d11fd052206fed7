"""The processes that hold one model's shards: how they meet, and what they tell each other in a turn."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from editing.capture import TurnRows
from editing.errors import InputError, UltraEditError
from editing.parts import Part


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which shard of a model a process holds, and where the others are.

    Attributes:
        rank: This shard, from 0.
        num_shards: Shards that together hold the model; 1 needs no others and no group.
        address: Host of shard 0.
        port: A free port on it.
        local_rank: Index of this process's GPU among those that it sees: 0 if it sees one, as a Ray actor does.
        local_shards: How many of the shards run on this machine; ``None`` if all do.
        timeout: Seconds after which a shard that waits for a dead or stuck one gives up.
    """

    rank: int = 0
    num_shards: int = 1
    address: str = "127.0.0.1"
    port: int = 29500
    local_rank: int = 0
    local_shards: int | None = None
    timeout: float = 600.0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.num_shards:
            raise InputError(f"shards: expected a rank from 0 to {self.num_shards - 1}, found {self.rank}")


def join_group(placement: Placement, device: torch.device) -> dist.ProcessGroup:
    """Meet the other shards: gloo on the CPU, nccl on GPUs. All shards call this; a group that exists is used again.

    Raises:
        InputError: They did not come within the timeout.
    """
    set_environment(placement, device)
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                init_method=f"tcp://{placement.address}:{placement.port}",
                rank=placement.rank,
                world_size=placement.num_shards,
                timeout=timedelta(seconds=placement.timeout),
            )
        except (dist.DistError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"shard {placement.rank} of {placement.num_shards} could not meet the others at {placement.address}:{placement.port}: {reason}"
            ) from None
    group = dist.group.WORLD
    assert group is not None
    return group


def leave_group() -> None:
    """Undo :func:`join_group`."""
    if dist.is_initialized():
        dist.destroy_process_group()


def set_environment(placement: Placement, device: torch.device) -> None:
    """Tell DeepSpeed, which reads this from the environment when it is imported and when it shards, where this process stands."""
    local = placement.num_shards if placement.local_shards is None else placement.local_shards
    os.environ |= {
        "RANK": str(placement.rank),
        "WORLD_SIZE": str(placement.num_shards),
        "LOCAL_RANK": str(placement.local_rank),  # an index among the GPUs that this process sees, not among the machine's
        # its shared-memory sums, if it uses them, are set up only if this equals WORLD_SIZE, and crash if it is not set
        "LOCAL_SIZE": str(local),
        "MASTER_ADDR": placement.address,
        "MASTER_PORT": str(placement.port),
        "DS_ACCELERATOR": device.type,  # it would take a GPU where there is one
    }


class ShardReductions:
    """What the shards of one model tell each other; see :class:`editing.reductions.Reductions`.

    Sums and copies come out of one collective each, so every shard has the same bits. All of it is thin but :meth:`join`.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group, self._device = group, device
        self.rank, self.num_shards = dist.get_rank(group), dist.get_world_size(group)

    def gather_rows(self, rows: TurnRows) -> TurnRows:
        return rows  # every shard runs every sequence

    def total(self, partial: Tensor) -> Tensor:
        mine = partial.to(self._device, copy=True).contiguous()
        dist.all_reduce(mine, group=self._group)
        return mine.to(partial.device)

    def common(self, value: Tensor) -> Tensor:
        mine = value.to(self._device, copy=True).contiguous()
        dist.broadcast(mine, src=0, group=self._group)
        return mine.to(value.device)

    def join(self, held: Tensor, part: Part) -> Tensor:
        if not part.axis:
            return held
        dim = 1 if part.axis == "keys" else 0
        sizes = [sum(len(r) for r in ranges) for ranges in part.held]
        padded = torch.zeros(_with(held.shape, dim, max(sizes)), dtype=held.dtype, device=self._device)  # shards can be uneven
        padded.narrow(dim, 0, held.shape[dim]).copy_(held)
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self._group)
        return part.join([whole.narrow(dim, 0, size) for whole, size in zip(parts, sizes, strict=True)]).to(held.device)

    def by_first(self, action: Callable[[], None]) -> None:
        failure: Exception | None = None
        if self.rank == 0:
            try:
                action()
            except Exception as error:  # the others must hear of it, or they would wait for the timeout
                failure = error
        failed = bool(self.common(torch.tensor([float(failure is not None)])))
        if failure is not None:
            raise failure
        if failed:
            raise UltraEditError("shard 0 could not do what the others waited for; its own message says why")


def _with(shape: torch.Size, dim: int, size: int) -> list[int]:
    return [size if i == dim else n for i, n in enumerate(shape)]
