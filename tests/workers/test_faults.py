"""Whoever is killed, at whatever phase of a turn: the run ends in the bits of an undisturbed one."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("deepspeed")

from tests.orchestrator.test_resume import PER_TURN, TURNS, ledger
from tests.workers.faulty import PHASES, Fault, arm, struck
from tests.workers.test_group import ROOT, command, digests, finish, start

pytestmark = pytest.mark.distributed

SHARDS = ("--shards", 2)
GRID = ("--shards", 2, "--replicas", 2)


def start_faulty(out: Path, environment: dict[str, str], *more: object) -> subprocess.Popen[str]:
    python, _, _, *arguments = command(out, *more)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    run = [python, "-m", "tests.workers.faulty", *arguments]
    return subprocess.Popen(run, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    finish(start(out, *SHARDS, "--watch-every", 1))
    return out


@pytest.fixture(scope="module")
def undisturbed_grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grid") / "out"
    finish(start(out, *GRID, "--watch-every", 1))
    return out


def assert_same(out: Path, undisturbed: Path) -> None:
    assert digests(out) == digests(undisturbed)
    assert [(turn, record) for turn, record, _ in ledger(out)] == [(1 + i // PER_TURN, i + 1) for i in range(TURNS * PER_TURN)]


def test_shards_killed_at_every_phase_are_replaced_and_the_bits_are_the_same(undisturbed: Path, tmp_path: Path) -> None:
    """One after the other: a worker's death is not forgiven three times in a row without a turn between."""
    faults = [Fault(phase, turn, rank=turn % 2) for turn, phase in enumerate(PHASES, start=3)]
    process = start_faulty(tmp_path / "out", arm(tmp_path / "faults", faults), *SHARDS, "--watch-every", 1)
    said = finish(process)
    assert struck(tmp_path / "faults") == said.count("starting all workers again") == len(faults)
    assert_same(tmp_path / "out", undisturbed)


def test_a_killed_coordinators_run_goes_on_on_the_same_shards_to_the_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    _kill_the_coordinator("apply", 6, undisturbed, tmp_path, SHARDS)


def _kill_the_coordinator(phase: str, turn: int, undisturbed: Path, tmp_path: Path, topology: tuple[object, ...]) -> None:
    environment = arm(tmp_path / "faults", [Fault(phase, turn, rank=0, victim="coordinator")])
    process = start_faulty(tmp_path / "out", environment, *topology, "--watch-every", 1)
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    said = finish(start(tmp_path / "out", *topology, "--watch-every", 1, "--resume", "auto"))
    assert "resuming" in said
    assert_same(tmp_path / "out", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("victim", ["worker", "replica"])
def test_a_grid_survives_the_loss_of_a_shard_and_of_a_replica_at_every_phase(victim: str, phase: str, undisturbed_grid: Path, tmp_path: Path) -> None:
    # the last replica's shards are not asked for health: there the first one's are
    rank = 1 if phase == "measure" else 3
    process = start_faulty(tmp_path / "out", arm(tmp_path / "faults", [Fault(phase, 5, rank, victim)]), *GRID, "--watch-every", 1)
    said = finish(process)
    assert struck(tmp_path / "faults") == said.count("starting all workers again") == 1
    assert_same(tmp_path / "out", undisturbed_grid)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_grids_run_survives_its_coordinator_at_every_phase(phase: str, undisturbed_grid: Path, tmp_path: Path) -> None:
    _kill_the_coordinator(phase, 5, undisturbed_grid, tmp_path, GRID)
