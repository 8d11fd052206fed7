"""Which tests stay in one process where several run them (``make test``): those that share what takes long to make.

pytest-xdist 3.8 has a mark for this, ``xdist_group``, which has no effect with pytest 9.2: it writes the group into a node's id
by a field that is no longer read.
"""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

_SHARDED = "tests/workers/engines/test_sharded.py"
GROUPS = {
    "tests/test_gemma.py::test_the_same_on_ray": "Gemma on Ray",
    "tests/deploy/test_cluster.py": "cluster of two nodes",
    "tests/deploy/test_job.py": "cluster of two nodes",
    f"{_SHARDED}::test_two_replicas": "replicas with DeepSpeed",
    f"{_SHARDED}::test_lookahead": "replicas with DeepSpeed",
    f"{_SHARDED}::test_nothing_as_large": "replicas with DeepSpeed",
    "tests/workers/test_runs_on_ray.py::test_a_run_on_ray": "undisturbed run on two shards",
    "tests/orchestrator/run/test_chat_edits.py::test_two_shards": "undisturbed run on two shards",
    "tests/workers/test_killed_workers.py::test_killed_shards": "undisturbed run on two shards",
    "tests/workers/test_killed_workers.py::test_a_killed_coordinators_run": "undisturbed run on two shards",
    "tests/workers/test_killed_workers.py::test_a_worker_that_is_out_of_memory": "worker without memory",
    "tests/orchestrator/run/test_resume.py::test_a_soak": "soak",
    "tests/orchestrator/run/test_resume.py::test_fifty_kills": "fifty kills",
}
"""What a group shares, by how the ids of its tests begin; the first that fits counts."""


def group_of(nodeid: str) -> str:
    """The group of a test: by default its file, whose fixtures are made once then."""
    file = nodeid.partition("::")[0]
    return next((group for beginning, group in GROUPS.items() if nodeid.startswith(beginning)), file)


class SideBySide(LoadScopeScheduling):
    """Deals out groups in the order of their first tests: those that take long come first, none is left for the end."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # it would begin with the groups of most tests

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
