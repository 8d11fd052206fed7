"""The workers of a run: one in this process, or a group of them on Ray."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path

from editing import InputError
from orchestrator.run.run_config import RunConfig
from orchestrator.tracking_database import database_of
from workers.protocol import Worker
from workers.worker import LocalWorker

logger = logging.getLogger("ultraedit")


def make_worker(config: RunConfig) -> Worker:
    """The worker of a configuration, not loaded yet.

    Raises:
        InputError: Several workers are configured and a package that they need is not installed.
    """
    spec = config.worker_spec()
    if not config.is_distributed:
        return LocalWorker(spec)
    for package in ("ray", *(["deepspeed"] if config.shards > 1 else [])):
        if find_spec(package) is None:
            raise InputError(f"shards: {package} is not installed; install the extra [distributed], or give --shards 1 --replicas 1")
    address = config.ray_address or ("auto" if os.environ.get("RAY_ADDRESS") else "local")
    from workers.cluster import ClusterSpec
    from workers.group import WorkerGroup

    cluster = ClusterSpec(
        shards=config.shards, replicas=config.replicas, address=address, resources=config.resources(), placement_timeout=config.placement_timeout
    )
    return WorkerGroup(spec, cluster, timeout=config.worker_timeout)


def warn_of_what_a_job_loses(config: RunConfig) -> None:
    """Warn of results of a Ray job in the job's own folder, which Ray deletes when the job has ended."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # which Ray sets for a job's own process
        return
    lost, own = [], Path.cwd()
    if not Path(config.output).is_absolute():
        lost.append(f"--output {config.output}: give an absolute path, on storage that all nodes share")
    if (database := database_of(config.tracking_uri)) is not None and own != Path("/") and database.is_relative_to(own):
        lost.append(f"--tracking-uri {config.tracking_uri}: give a server, sqlite:////FOLDER/mlflow.db on storage that stays, or none")
    if lost:
        logger.warning("job       Ray deletes the job's own folder when it ends, and with it %s", "; ".join(lost))
