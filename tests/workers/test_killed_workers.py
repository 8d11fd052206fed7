"""Whoever is killed, at whatever phase of a turn: the run ends in the bits of an undisturbed one."""

import signal
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("deepspeed")

from tests.support.faulty_run import MAKE_FAULTY, PHASES, Fault, arm, struck
from tests.support.forked import ForkedRun
from tests.support.ray_runs import command, digests, finish, start
from tests.support.tiny_models import TinyModel
from tests.support.tiny_runs import PER_TURN, TURNS, ledger

pytestmark = [pytest.mark.distributed, pytest.mark.long]

SHARDS = ("--shards", 2)
GRID = ("--shards", 2, "--replicas", 2)


def start_faulty(out: Path, faults: list[Fault], *more: object) -> ForkedRun:
    """A run whose health is measured every turn, so that it has that phase too."""
    environment = arm(out.with_name("faults"), faults)
    return ForkedRun(command(out, *more, "--watch-every", 1), environment=environment, before=MAKE_FAULTY)


def assert_same(out: Path, undisturbed: Path) -> None:
    assert digests(out) == digests(undisturbed)
    assert [(turn, record) for turn, record, _ in ledger(out)] == [(1 + i // PER_TURN, i + 1) for i in range(TURNS * PER_TURN)]


def assert_recovers(faults: list[Fault], topology: tuple[object, ...], undisturbed: Path, out: Path) -> None:
    """The run goes on from its last checkpoint after each fault, not from the beginning."""
    said = finish(start_faulty(out, faults, *topology), timeout=1200)
    assert struck(out.with_name("faults")) == len(faults)
    assert said.count("starting all workers again") == said.count("resuming") == len(faults), said
    assert_same(out, undisturbed)


@pytest.mark.thorough
def test_killed_shards_are_replaced_and_the_bits_are_the_same(two_shards: Path, tmp_path: Path) -> None:
    """The same topology twice gives the same bits too, or this could not hold."""
    assert_recovers([Fault("solve", 4, rank=1), Fault("checkpoint", 6, rank=0)], SHARDS, two_shards, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "replica"])
def test_a_grid_survives_the_loss_of_a_shard_and_of_a_replica_at_every_phase(victim: str, grid: Path, tmp_path: Path) -> None:
    # health is asked of the first replica alone
    faults = [Fault(phase, turn, rank=1 if phase == "measure" else turn % 4, victim=victim) for turn, phase in enumerate(PHASES, start=3)]
    assert_recovers(faults, GRID, grid, tmp_path / "out")


@pytest.mark.parametrize("phase", [pytest.param(p, marks=pytest.mark.thorough if p == "apply" else pytest.mark.slow) for p in PHASES])
def test_a_killed_coordinators_run_goes_on_on_the_same_shards_to_the_same_bits(phase: str, two_shards: Path, tmp_path: Path) -> None:
    process = start_faulty(tmp_path / "out", [Fault(phase, 5, rank=0, victim="coordinator")], *SHARDS)
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert "resuming" in finish(start(tmp_path / "out", *SHARDS, "--resume", "auto"))
    assert_same(tmp_path / "out", two_shards)


@pytest.mark.thorough
def test_a_worker_that_is_out_of_memory_is_named_with_its_node_its_turn_and_advice(tmp_path: Path) -> None:
    """Its address space ends where it is when the second turn begins, and what earlier work has freed is taken."""
    wide = TinyModel("wide", "llama", (), {"tie_word_embeddings": False, "intermediate_size": 48_000})
    wide.write(tmp_path / "model")
    flags = ["--model", tmp_path / "model", "--modules", "model.layers.{1,2}.self_attn.o_proj", "--edits-per-turn", 30, "--replicas", 2]
    process = start_faulty(tmp_path / "out", [Fault("capture", 2, rank=1, victim="memory")], *flags)
    _, stderr = process.communicate(timeout=300)
    (error,) = (line for line in stderr.splitlines() if line.startswith("error:"))
    assert process.returncode == 1
    assert error.startswith("error: turn 2: worker 1 (shard 0 of replica 1) on 127.0.0.2 is out of memory: ")
    assert "give more --shards, a smaller --batch-tokens" in error
