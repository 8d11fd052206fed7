"""Real processes, one a shard: they start once and do many jobs, for importing DeepSpeed takes seconds."""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.multiprocessing as mp

from tests.workers.scenario import Job, Record, run
from workers.worker import Placement


def run_on_shards(jobs: Sequence[Job], num_shards: int, folder: Path) -> dict[str, list[Record]]:
    """Do jobs on all shards of each model, one job after the other.

    Returns:
        Per job the shards' records, in the order of ranks.
    """
    mp.start_processes(_shard, (num_shards, _free_port(), list(jobs), str(folder)), nprocs=num_shards, start_method="spawn")
    return {job.name: [Record.read(folder, f"{job.name}.{rank}") for rank in range(num_shards)] for job in jobs}


def _shard(rank: int, num_shards: int, port: int, jobs: Sequence[Job], folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    placement = Placement(rank=rank, num_shards=num_shards, port=port, timeout=300)  # a busy machine takes a minute to start them
    for job in jobs:
        try:
            run(job, placement).write(Path(folder), f"{job.name}.{rank}")
        except BaseException:
            sys.stderr.write(f"shard {rank}, job {job.name}\n")
            raise


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
