"""Real processes, one a shard: they start once and do many jobs, for importing DeepSpeed takes seconds."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.multiprocessing as mp

from tests.support import forked  # noqa: F401  # what the processes are forked from
from tests.support.ports import free_ports
from tests.support.shard_jobs import Job, Record, run
from workers.worker import Placement


def run_on_shards(
    jobs: Sequence[Job], num_shards: int, folder: Path, *, num_replicas: int = 1, start_method: str = "forkserver"
) -> dict[str, list[Record]]:
    """Do jobs on all shards of all replicas of each model, one job after the other.

    Processes that use GPUs cannot be forked: they take the start method ``spawn``.

    Returns:
        Per job the processes' records, in the order of their world ranks.
    """
    count = num_shards * num_replicas
    mp.start_processes(_process, (num_shards, num_replicas, free_ports(1)[0], list(jobs), str(folder)), nprocs=count, start_method=start_method)
    return {job.name: [Record.read(folder, f"{job.name}.{rank}") for rank in range(count)] for job in jobs}


def _process(world_rank: int, num_shards: int, num_replicas: int, port: int, jobs: Sequence[Job], folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    replica, rank = divmod(world_rank, num_shards)
    local_rank = world_rank if any(job.device == "cuda" for job in jobs) else 0
    placement = Placement(
        rank=rank, num_shards=num_shards, replica=replica, num_replicas=num_replicas, port=port, local_rank=local_rank, timeout=300
    )  # a busy machine takes a minute to start them
    for job in jobs:
        try:
            run(job, placement).write(Path(folder), f"{job.name}.{world_rank}")
        except BaseException:
            sys.stderr.write(f"{placement}, job {job.name}\n")
            raise
