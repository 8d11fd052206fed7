"""Which tests stay in one process where several run them (``make test``): those that share what takes long to make.

pytest-xdist 3.8 has a mark for this, ``xdist_group``, which has no effect with pytest 9.2: it writes the group into a node's id
by a field that is no longer read.
"""

from xdist.scheduler import LoadScopeScheduling

_SHARDED = "tests/workers/engines/test_sharded.py"
GROUPS = {
    "tests/test_gemma.py": "Gemma 3 270M",
    "tests/deploy/test_cluster.py": "cluster of two nodes",
    "tests/deploy/test_job.py": "cluster of two nodes",
    f"{_SHARDED}::test_two_replicas": "replicas with DeepSpeed",
    f"{_SHARDED}::test_lookahead": "replicas with DeepSpeed",
    f"{_SHARDED}::test_nothing_as_large": "replicas with DeepSpeed",
    _SHARDED: "shards with DeepSpeed",
    "tests/workers/test_runs_on_ray.py::test_a_run_on_ray": "undisturbed run on two shards",
    "tests/workers/test_killed_workers.py::test_killed_shards": "undisturbed run on two shards",
    "tests/workers/test_killed_workers.py::test_a_killed_coordinators_run": "undisturbed run on two shards",
}
"""What a group shares, by how the ids of its tests begin; the first that fits counts."""


def group_of(nodeid: str) -> str:
    """The group of a test; any other test is one of its own."""
    return next((group for beginning, group in GROUPS.items() if nodeid.startswith(beginning)), nodeid)


class SideBySide(LoadScopeScheduling):
    """Deals out groups, the ones of most tests first, then single tests in their order."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
