"""A run on Ray: the same edits, files and errors as in one process, whoever is killed on the way."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

pytest.importorskip("ray")
pytest.importorskip("deepspeed")

from tests.support.forked import ForkedRun
from tests.support.ray_runs import assert_close, finish, start
from tests.support.tiny_runs import ledger

pytestmark = [pytest.mark.distributed, pytest.mark.long]


def descendants(process: ForkedRun, word: str = "") -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if word in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def wait_for_turn(process: ForkedRun, out: Path, turn: int) -> None:
    """Until a checkpoint at or after a turn is there."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        for path in out.parent.glob(f".{out.name}.partial-*/checkpoints/turn-*"):
            if int(path.name.removeprefix("turn-")) >= turn:
                return
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint at turn {turn}: {process.communicate()[1] if process.poll() is not None else 'still running'}")


@pytest.mark.parametrize("topology", ["two_shards", pytest.param("grid", marks=pytest.mark.slow)])
def test_a_run_on_ray_gives_the_weights_of_one_process(topology: str, whole: Path, request: pytest.FixtureRequest) -> None:
    undisturbed = request.getfixturevalue(topology)
    assert_close(undisturbed, whole)
    assert ledger(undisturbed) == ledger(whole)


def still_running(processes: list[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Those that have not ended in time. One that has ended and waits for its new parent to take note of it (a zombie) has ended."""
    until = time.monotonic() + timeout
    while (running := [process for process in processes if _runs(process)]) and time.monotonic() < until:
        time.sleep(0.2)
    return running


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[psutil.Process]]]:
    """A run on two replicas whose coordinator was killed; its folder, and every process that it had started."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    process = start(out, "--replicas", "2")
    wait_for_turn(process, out, 4)
    children = descendants(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    yield out, children
    for child in psutil.wait_procs(children, timeout=0)[1]:
        child.kill()


@pytest.mark.thorough
def test_a_killed_coordinators_run_goes_on_on_another_topology(stopped: tuple[Path, list[psutil.Process]], whole: Path) -> None:
    out, children = stopped
    assert len(children) > 2
    said = finish(start(out, "--resume", "auto"))
    assert "resuming" in said
    assert_close(out, whole)


@pytest.mark.thorough
def test_control_c_ends_every_process(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out, "--replicas", "2")
    wait_for_turn(process, out, 2)
    children = descendants(process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert still_running(children, timeout=90) == []


@pytest.mark.thorough
def test_a_stuck_worker_is_noticed_by_the_timeout(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "out"
    process = start(out, "--replicas", "2", "--worker-timeout", "30")
    wait_for_turn(process, out, 2)
    descendants(process, "ray::RemoteWorker")[0].send_signal(signal.SIGSTOP)
    said = finish(process)
    assert "starting all workers again" in said
    assert_close(out, whole)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param(
            ["--replicas", "2", "--resources-per-shard", "gpu=1"],
            "2 x 1 shards need 2 GPU, 1 on one node each; the cluster has 0 on 1 nodes",
            marks=pytest.mark.thorough,
        ),
        (["--shards", "999"], "give 1 to 4"),  # nobody waits for 999 processes to say so
        pytest.param(["--replicas", "2", "--placement-timeout", "5"], "give --resources-per-shard, such as gpu=1", marks=pytest.mark.thorough),
        (["--replicas", "2", "--ray-address", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
        (["--replicas", "2", "--resources-per-shard", "cpu"], "expected amounts like gpu=1,cpu=4"),
    ],
)
def test_what_cannot_be_placed_is_refused_in_one_line_within_seconds(flags: list[str], words: str, tmp_path: Path) -> None:
    process = start(tmp_path / "out", *flags)
    _, stderr = process.communicate(timeout=300)
    errors = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert process.returncode == 1, stderr
    assert len(errors) == 1, stderr
    assert words in errors[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cause", [MemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")])
def test_a_worker_without_memory_is_named_with_what_to_do(cause: Exception) -> None:
    from workers.cluster import ClusterSpec
    from workers.group import WorkerGroup
    from workers.protocol import WorkerSpec

    group = WorkerGroup(WorkerSpec(model="m", options={}), ClusterSpec(shards=2, replicas=2))
    group._nodes = ["10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.2"]
    told = str(group._as_raised_here(SimpleNamespace(cause=cause), 3))
    assert told.startswith("worker 3 (shard 1 of replica 1) on 10.0.0.2 is out of memory: ")
    assert "more --shards" in told


@pytest.mark.thorough
def test_a_killed_coordinator_leaves_no_process(stopped: tuple[Path, list[psutil.Process]]) -> None:
    """Last, since Ray's processes miss their master for a minute before they end."""
    assert still_running(stopped[1], timeout=240) == []
