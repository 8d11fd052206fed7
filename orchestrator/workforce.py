"""Who does the work of a run: one worker in this process, or a group of them on Ray."""

import os
import secrets
from importlib.util import find_spec
from typing import cast

from editing import InputError
from orchestrator.config import RunConfig
from workers.worker import Worker


def make_worker(config: RunConfig) -> Worker:
    """The worker of a configuration, not loaded yet. A group of workers has the verbs of one.

    Raises:
        InputError: Several workers are wanted and what they need is not installed.
    """
    spec = config.worker_spec()
    if not config.is_distributed:
        return Worker(spec)
    for package in ("ray", *(["deepspeed"] if config.shards > 1 else [])):
        if find_spec(package) is None:
            raise InputError(f"shards: {package} is not installed; install the extra [distributed], or give --shards 1 --replicas 1")
    address = config.ray_address or ("auto" if os.environ.get("RAY_ADDRESS") else "local")
    if address == "local":
        lock_local_cluster()
    from workers.cluster import ClusterSpec
    from workers.group import WorkerGroup

    cluster = ClusterSpec(
        shards=config.shards, replicas=config.replicas, address=address, resources=config.resources(), placement_timeout=config.placement_timeout
    )
    return cast(Worker, WorkerGroup(spec, cluster, timeout=config.worker_timeout))


def lock_local_cluster() -> None:
    """A cluster of this run's own lets nobody else in. Ray reads this once, when it is imported."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
