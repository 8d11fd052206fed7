"""What the unedited model answers is computed once: a second run has the same metrics, with the kept answers and without."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from editing import Editor
from orchestrator.run import unedited_answers
from tests.support.command_line import Outcome
from tests.support.tiny_runs import MODEL, RECORDS, arguments, write_records

Run = Callable[..., dict[str, Any]]
MEASURED = ("--eval", "--generate", "6", "--perplexity-text", "held-out")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where answers are kept."""
    monkeypatch.setattr(unedited_answers, "folder_of_all", lambda: tmp_path / "kept")
    return tmp_path / "kept"


@pytest.fixture
def run(kept: Path, tmp_path: Path, ultraedit: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run's metrics, and how often it went back to the unedited model at its end."""
    edits = write_records(tmp_path / "edits.jsonl", RECORDS[:12])
    asked = list[None]()
    unedited = Editor.unedited

    @contextmanager
    def counted(editor: Editor) -> Iterator[None]:
        asked.append(None)
        with unedited(editor):
            yield

    monkeypatch.setattr(Editor, "unedited", counted)

    def measured(name: str, *more: object, model: Path = MODEL) -> dict[str, Any]:
        asked.clear()
        outcome = ultraedit(*arguments(edits, tmp_path / name, "--watch-every", "100", *MEASURED, *more, "--model", model))
        assert outcome.code == 0, outcome.stderr
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        return {**{k: v for k, v in metrics.items() if k not in ("seconds", "peak_memory_bytes")}, "asked": len(asked), "said": outcome.stderr}

    return measured


def test_a_second_run_does_not_ask_the_unedited_model_and_has_the_same_metrics(run: Run) -> None:
    first, second = run("first"), run("second")
    assert second.pop("asked") < first.pop("asked") - 2
    assert second == first


def test_other_edits_of_the_same_model_are_asked_about_and_kept_too(run: Run) -> None:
    several = run("several", "--limit", "6"), run("all"), run("all-again")
    assert several[1]["evaluated"] == 12
    assert several[1]["asked"] > several[2]["asked"]
    assert {**several[1], "asked": 0} == {**several[2], "asked": 0}


@pytest.mark.thorough
def test_another_model_has_its_own(run: Run, tmp_path: Path) -> None:
    first = run("first")
    shutil.copytree(MODEL, other := tmp_path / "model")
    for file in other.glob("*.safetensors"):
        save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    second = run("second", model=other)
    assert second["asked"] == first["asked"]
    assert second["perplexity_before"] != first["perplexity_before"]


@pytest.mark.parametrize("damage", [b"no database", b""], ids=["other bytes", "nothing"])
def test_a_damaged_file_costs_a_warning_at_most(damage: bytes, run: Run, kept: Path) -> None:
    first = run("first")
    (file,) = kept.iterdir()
    file.write_bytes(damage)
    second = run("second")
    assert ("delete the file if this stays" in second["said"]) is bool(damage)
    for name in ("said", "asked"):
        del first[name], second[name]
    assert second == first


def test_a_folder_that_cannot_be_written_costs_a_warning(run: Run, kept: Path) -> None:
    kept.write_text("a file")
    assert run("first")["said"].count("what the unedited model answers is computed again") == 1


def test_the_oldest_answers_make_room(run: Run, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unedited_answers, "_MOST", 10)
    run("first")
    (file,) = kept.iterdir()
    assert sqlite3.connect(file).execute("SELECT COUNT(*) FROM answers").fetchone()[0] == 10
