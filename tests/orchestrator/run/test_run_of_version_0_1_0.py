"""A run folder that version 0.1.0 wrote, finished or not, is shown, resumed, appended to and replayed as one of today.

The folders are in ``tests/data/run-0.1.0``; their paths are relative to this project's folder, where the tests of it run.
"""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.command_line import Outcome

ROOT = Path(__file__).parents[3]
OLD = ROOT / "tests" / "data" / "run-0.1.0"
MODEL = ROOT / "tests" / "data" / "parity" / "llama-tiny" / "model"
PER_TURN = 6
OPTIONS = [
    *("--model", MODEL, "--modules", "model.layers.1.mlp.down_proj", "--subject-modules", "model.layers.0.mlp.down_proj"),
    *("--subject-scale", "0.2", "--learning-rate", "1e-3", "--passes", "2", "--preserve", "exact", "--whiten", "--warm-up", "4"),
    *("--edits-per-turn", PER_TURN, "--lookahead", "1", "--checkpoint-every", "1", "--watch-every", "2", "--generate", "2"),
    *("--save", "delta", "--tracking-uri", "none"),
]
Ultraedit = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _in_the_old_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return shutil.copytree(OLD / "finished", tmp_path / "out")


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """Where the run would be if it were finished; its folder aside belongs to a process that is dead."""
    dead = 2**22 + 1  # above the largest process id of Linux
    shutil.copytree(OLD / "unfinished", tmp_path / f".out.partial-{dead}@{socket.gethostname()}")
    return tmp_path / "out"


@pytest.fixture(scope="module")
def records() -> list[str]:
    return (OLD / "edits.jsonl").read_text().splitlines()


@pytest.fixture
def fresh(tmp_path: Path, ultraedit: Ultraedit) -> Callable[..., dict[str, torch.Tensor]]:
    """The edited weights of a new run with the old one's options: the oracle."""

    def run(edits: list[str], *more: object) -> dict[str, torch.Tensor]:
        path, out = tmp_path / "fresh.jsonl", tmp_path / "fresh"
        path.write_text("".join(line + "\n" for line in edits))
        outcome = ultraedit("edit", *OPTIONS, "--edits", path, "--output", out, *more)
        assert outcome.code == 0, outcome.stderr
        return edited_weights(out)

    return run


def edited_weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "delta" / "edited.safetensors")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """To float32's round-off: the old run's first turns were computed on another machine."""
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert float((found[name].double() - weight.double()).norm() / weight.double().norm()) < 1e-6, name


def metrics(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())


def test_the_same_options_give_the_same_weights_today(finished: Path, fresh: Callable[..., Any], records: list[str]) -> None:
    """Or nothing below could be compared."""
    assert_same(edited_weights(finished), fresh(records))


def test_a_finished_run_is_shown(finished: Path, ultraedit: Ultraedit) -> None:
    shown = ultraedit("show", finished)
    assert shown.code == 0, shown.stderr
    assert "24 edits in 4 turns, 1 rejected" in shown.stdout
    assert "Metrics of 24 edits" in shown.stdout


def test_its_history_is_listed(finished: Path, ultraedit: Ultraedit) -> None:
    turns, edits = ultraedit("history", finished), ultraedit("history", finished, "--edits")
    assert (turns.code, edits.code) == (0, 0)
    assert turns.stdout.count("applied") == 4
    assert edits.stdout.count("applied") == 24


def test_its_turns_are_compared(finished: Path, ultraedit: Ultraedit) -> None:
    shown = ultraedit("diff", finished, 1, 3)
    assert shown.code == 0, shown.stderr
    assert "turns 2 to 3: 12 edits applied" in shown.stdout


def test_an_unfinished_run_is_resumed_to_the_weights_of_an_undisturbed_one(
    unfinished: Path, ultraedit: Ultraedit, fresh: Callable[..., Any], records: list[str]
) -> None:
    outcome = ultraedit("edit", "--resume", unfinished)
    assert outcome.code == 0, outcome.stderr
    assert "after turn 2, 12 edits applied" in outcome.stderr
    assert (metrics(unfinished)["edits"], metrics(unfinished)["rejected"]) == (24, 1)
    assert_same(edited_weights(unfinished), fresh(records))


def test_a_finished_run_is_appended_to(finished: Path, tmp_path: Path, ultraedit: Ultraedit, fresh: Callable[..., Any], records: list[str]) -> None:
    known = {json.loads(line)["prompt"] for line in records}
    others = json.loads((MODEL.parent / "edits.json").read_text())
    more = [json.dumps(record) for record in others if record["prompt"] not in known][:PER_TURN]
    (tmp_path / "more.jsonl").write_text("\n".join(more))
    outcome = ultraedit("edit", "--resume", finished, "--edits", tmp_path / "more.jsonl")
    assert outcome.code == 0, outcome.stderr
    assert metrics(finished)["edits"] == 24 + PER_TURN
    assert_same(edited_weights(finished), fresh([*records, *more]))


@pytest.mark.parametrize("to_turn", [2, *(pytest.param(turn, marks=pytest.mark.thorough) for turn in (1, 3))])
def test_a_finished_run_is_rolled_back(to_turn: int, finished: Path, ultraedit: Ultraedit, fresh: Callable[..., Any], records: list[str]) -> None:
    outcome = ultraedit("rollback", finished, "--to-turn", to_turn)
    assert outcome.code == 0, outcome.stderr
    assert metrics(finished)["edits"] == to_turn * PER_TURN
    assert_same(edited_weights(finished), fresh(records, "--limit", to_turn * PER_TURN))


@pytest.mark.parametrize("record", [pytest.param(1, marks=pytest.mark.thorough), 22], ids=["of the warm-up", "after the oldest checkpoint"])
def test_an_edit_is_removed_from_a_finished_run(
    record: int, finished: Path, ultraedit: Ultraedit, fresh: Callable[..., Any], records: list[str]
) -> None:
    outcome = ultraedit("remove", finished, "--edit", record)
    assert outcome.code == 0, outcome.stderr
    assert metrics(finished)["edits"] == 23
    assert_same(edited_weights(finished), fresh(records[: record - 1] + records[record:]))


def test_its_delta_is_applied_to_its_base(finished: Path, tmp_path: Path, ultraedit: Ultraedit) -> None:
    outcome = ultraedit("apply", finished, "--output", tmp_path / "model")
    assert outcome.code == 0, outcome.stderr
    made, base = ({k: t for file in folder.glob("*.safetensors") for k, t in load_file(file).items()} for folder in (tmp_path / "model", MODEL))
    edited = edited_weights(finished)
    assert made.keys() == base.keys()
    assert all(torch.equal(weight, edited.get(name, base[name])) for name, weight in made.items())
    assert all(not torch.equal(weight, base[name]) for name, weight in edited.items())
