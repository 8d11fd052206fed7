"""A run on a cluster that is there, from outside; and what a person reads who is not let in, or whose nodes are not alike."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.command_line import Outcome
from tests.support.loopback_cluster import WORKER, LoopbackCluster
from tests.support.paths import ROOT
from tests.support.ray_runs import largest_difference

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.distributed,
    pytest.mark.thorough,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems have no 127.0.0.2 of their own"),
]

KNOCK = """
import sys
from editing import InputError
from workers.cluster import Cluster, ClusterSpec
for address in sys.argv[1:]:
    try:
        Cluster(ClusterSpec(replicas=2, address=address))
    except InputError as error:
        print(error)
"""
OTHER_VERSIONS = """
import ray.util.client
import ray._private.utils
ray._private.utils.compute_version_info = lambda: ("9.9.9", "3.99.1")
"""


def knock(addresses: list[str], environment: dict[str, str], before: str = "") -> list[str]:
    """What is said to a client at each address, within seconds."""
    client = subprocess.run(
        [sys.executable, "-c", before + KNOCK, *addresses], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=180, check=True
    )
    said = client.stdout.splitlines()
    assert len(said) == len(addresses), client.stdout + client.stderr
    return said


ON_A_DISK_OF_ITS_OWN = """
from orchestrator.run import run_config
run_config.absolute = dict  # a relative path means nothing to processes that start elsewhere, as a disk of one node does
from orchestrator.__main__ import main
main()
"""


def start(
    address: str, flags: list[str], out: Path, cluster: LoopbackCluster, *more: object, program: Sequence[str] = ("-m", "orchestrator")
) -> subprocess.CompletedProcess[str]:
    run = [*flags, "--output", str(out), "--ray-address", address, *map(str, more)]
    return subprocess.run(
        [sys.executable, *program, *run], env=cluster.let_in, cwd=out.parent, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def flags(llama_tiny: Path, edit_flags: list[str]) -> list[str]:
    return [*edit_flags, "--edits", str(llama_tiny / "edits.json"), "--no-eval", "--generate", "0"]


def the_error(process: subprocess.CompletedProcess[str]) -> str:
    """The one line of a run that could not begin."""
    assert process.returncode == 1, process.stderr
    (line,) = (line for line in process.stderr.splitlines() if line.startswith("error:"))
    assert "Traceback" not in process.stderr
    return line


@pytest.mark.parametrize("scheme", ["ray://", pytest.param("", marks=pytest.mark.slow)], ids=["client", "driver"])
def test_a_run_from_outside_gives_the_weights_of_one_process(
    scheme: str, cluster: LoopbackCluster, flags: list[str], ultraedit: Callable[..., Outcome], tmp_path: Path
) -> None:
    address = f"ray://{cluster.client}" if scheme else cluster.gcs
    run = start(address, flags, tmp_path / "out", cluster, "--replicas", "2")
    assert run.returncode == 0, run.stderr + cluster.client_logs()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["model"]["replicas"] == 2
    assert ultraedit(*flags, "--output", tmp_path / "alone").code == 0
    assert largest_difference(tmp_path / "out" / "model", tmp_path / "alone" / "model") < 1e-5
    until = time.monotonic() + 60  # the cluster takes note of it a moment later
    while (alive := [actor for actor in cluster.list_states("actors") if actor["state"] != "DEAD"]) and time.monotonic() < until:
        time.sleep(0.3)
    assert alive == []


@pytest.mark.parametrize(
    "given",
    [{}, pytest.param({"RAY_AUTH_MODE": "token"}, marks=pytest.mark.slow), {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}],
    ids=["open", "none", "other"],
)
def test_a_client_without_the_clusters_token_is_told_so(given: dict[str, str], cluster: LoopbackCluster) -> None:
    addresses, began = [f"ray://{cluster.client}", cluster.gcs], time.monotonic()
    for address, said in zip(addresses, knock(addresses, {**cluster.environment, **given}), strict=True):
        assert said.startswith(f"ray-address: {address} did not accept this process's authentication token")
        assert "set RAY_AUTH_MODE=token" in said
    assert time.monotonic() - began < 45  # Ray itself tries for half a minute at each of the two


def test_a_client_at_the_wrong_port_is_told_so(cluster: LoopbackCluster) -> None:
    dashboard = cluster.dashboard.removeprefix("http://")
    said = knock([f"ray://{cluster.gcs}", cluster.client, dashboard], cluster.let_in)
    assert f"ray://{cluster.gcs} is another port of a Ray cluster; give" in said[0]
    assert f"{cluster.client} is another port of a Ray cluster; give" in said[1]
    assert f"the service at {dashboard} is not a Ray cluster" in said[2]


@pytest.mark.parametrize("scheme", [pytest.param("ray://", marks=pytest.mark.slow), ""], ids=["client", "driver"])
def test_a_client_of_another_version_is_told_both(scheme: str, cluster: LoopbackCluster) -> None:
    """The handshake is real; only what this client says of itself is not."""
    (said,) = knock([f"ray://{cluster.client}" if scheme else cluster.gcs], cluster.let_in, OTHER_VERSIONS)
    assert "runs another version of Ray or Python" in said
    assert "Ray: 9.9.9 Python: 3.99.1" in said
    assert said.endswith("install the same versions here")


def test_a_node_that_does_not_see_the_model_is_named(cluster: LoopbackCluster, flags: list[str], llama_tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(llama_tiny / "model")
    error = the_error(
        start(cluster.gcs, [*flags, "--model", "model"], tmp_path / "out", cluster, "--replicas", "2", program=["-c", ON_A_DISK_OF_ITS_OWN])
    )
    assert "error: model: worker 0 (shard 0 of replica 0) on 127.0.0." in error
    assert "has no such folder; put the model on storage that all nodes share" in error


@pytest.mark.parametrize(
    ("package", "more"), [("workers", ["--replicas", "2"]), pytest.param("deepspeed", ["--shards", "2"], marks=pytest.mark.slow)]
)
def test_a_node_without_a_package_is_named(package: str, more: list[str], cluster: LoopbackCluster, flags: list[str], tmp_path: Path) -> None:
    missing = cluster.packages(WORKER) / f"{package}.py"
    missing.write_text(f"raise ModuleNotFoundError(\"No module named '{package}'\")")
    try:
        error = the_error(start(cluster.gcs, flags, tmp_path / "out", cluster, *more))
    finally:
        missing.unlink()
    assert f"on {WORKER} cannot start" in error
    assert f"No module named '{package}'" in error
    assert "install this project with its extra [distributed] on every node" in error
