"""What nobody foresaw is one line too: what, where, and where the traceback is."""

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from orchestrator.cli.errors import Invocation, exit_code_of
from orchestrator.data import inspection
from orchestrator.tune import pipeline
from tests.support.command_line import Outcome, run_command_line
from tests.support.paths import PARITY
from tests.support.processes import RUN
from workers.engines.whole import WholeEngine

EDITS = RUN.parent / "edits.jsonl"
MODEL = PARITY / "llama-tiny" / "model"


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where error logs go during a test."""
    folder = tmp_path / "logs"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def fails(error: Exception) -> Callable[..., NoReturn]:
    def call(*_: Any, **__: Any) -> NoReturn:
        raise error

    return call


@pytest.fixture
def edit(tmp_path: Path) -> list[object]:
    flags = ["--model", MODEL, "--edits", EDITS, "--modules", "model.layers.1.mlp.up_proj", "--learning-rate", "1e-3", "--tracking-uri", "none"]
    return ["edit", *flags, "--limit", "2", "--output", tmp_path / "out"]


def only_line(outcome: Outcome, code: int = 1) -> str:
    assert outcome.code == code
    assert len(outcome.errors) == 1, outcome.stderr
    assert "Traceback" not in outcome.stderr
    return outcome.errors[0]


def test_an_error_while_a_model_is_loaded_says_so_with_cause_and_place(
    edit: list[object], logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WholeEngine, "load", fails(KeyError("k_proj")))
    line = only_line(run_command_line(*edit))
    assert line.startswith("error: edit: loading the model: unexpected KeyError: 'k_proj' (")
    (log,) = logs.iterdir()
    assert line.endswith(f"; the traceback is in {log}")
    text = log.read_text()
    assert re.match(r"ultraedit edit\npython 3\.\d+\.\d+, torch 2\..*, transformers \d.*, ultraedit-orchestrator \d.*\n", text)
    assert "Traceback (most recent call last):" in text
    assert text.endswith("KeyError: 'k_proj'\n")
    assert not (tmp_path / "out").exists()


def test_the_place_is_the_innermost_line_of_this_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "PromptIndex", fails(TypeError("many\nlines  of\ttext")))
    line = only_line(run_command_line("data", "inspect", EDITS))
    found = re.match(r"error: data inspect: unexpected TypeError: many lines of text \(orchestrator/data/inspection\.py:(\d+), inspect\); ", line)
    assert found is not None, line
    assert "PromptIndex(" in Path(inspection.__file__).read_text().splitlines()[int(found.group(1)) - 1]


def test_the_notes_of_an_error_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ValueError("odd")
    error.add_note("record 12")
    monkeypatch.setattr(inspection, "PromptIndex", fails(error))
    assert "error: data inspect: record 12: unexpected ValueError: odd (" in only_line(run_command_line("data", "inspect", EDITS))


def test_tune_and_plan_name_themselves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator import plan_model

    monkeypatch.setattr(pipeline, "draw_sample", fails(IndexError("list index out of range")))
    monkeypatch.setattr(plan_model, "resolve_settings", fails(ZeroDivisionError("division by zero")))
    tuned = run_command_line("tune", "--model", MODEL, "--edits", EDITS, "--output", tmp_path / "tuned", "--tracking-uri", "none")
    assert only_line(tuned).startswith("error: tune: unexpected IndexError: list index out of range (orchestrator/tune/pipeline.py:")
    planned = run_command_line("plan", "--model", MODEL)
    assert only_line(planned).startswith("error: plan: unexpected ZeroDivisionError: division by zero (orchestrator/plan_model.py:")


@pytest.mark.parametrize("way", ["--debug", "ULTRAEDIT_DEBUG"])
def test_with_debug_the_traceback_is_shown_and_no_file_is_written(way: str, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "PromptIndex", fails(TypeError("odd")))
    if way == "ULTRAEDIT_DEBUG":
        monkeypatch.setenv(way, "1")
    outcome = run_command_line(*([way] if way == "--debug" else []), "data", "inspect", EDITS)
    assert outcome.code == 1
    assert "Traceback (most recent call last):" in outcome.stderr
    assert outcome.errors == [outcome.stderr.splitlines()[-1]]
    assert "the traceback is in" not in outcome.errors[0]
    assert list(logs.iterdir()) == []


def test_with_debug_a_foreseen_error_shows_its_traceback_too() -> None:
    outcome = run_command_line("--debug", "show", "/nowhere")
    assert "Traceback (most recent call last):" in outcome.stderr
    assert outcome.errors == ["error: /nowhere: holds no run.json, so it is no finished run"]


def test_where_no_file_can_be_written_the_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "PromptIndex", fails(TypeError("odd")))
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", fails(OSError(28, "No space left on device")))
    assert only_line(run_command_line("data", "inspect", EDITS)).endswith("; show the traceback with: ultraedit --debug ...")


def test_an_error_of_the_system_names_the_file_or_else_the_place(monkeypatch: pytest.MonkeyPatch, logs: Path) -> None:
    monkeypatch.setattr(inspection, "PromptIndex", fails(OSError(28, "No space left on device", "/full/file")))
    assert only_line(run_command_line("data", "inspect", EDITS)) == "error: /full/file: No space left on device"
    monkeypatch.setattr(inspection, "PromptIndex", fails(OSError(28, "No space left on device")))
    line = only_line(run_command_line("data", "inspect", EDITS))
    assert re.fullmatch(r"error: data inspect \(orchestrator/data/inspection\.py:\d+, inspect\): No space left on device", line)
    assert list(logs.iterdir()) == []


def test_a_message_of_pages_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "PromptIndex", fails(ValueError("word " * 1000)))
    assert len(only_line(run_command_line("data", "inspect", EDITS))) < 700


def test_an_interrupt_is_no_error_of_the_program(logs: Path) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert exit_code_of(interrupted, Invocation("edit")) == 130
    assert list(logs.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("turns.jsonl", ["diff", 0, 1]),
        ("ledger/part-000001.parquet", ["history"]),
        ("edits.parquet", ["show"]),
        ("run.json", ["show"]),
        ("metrics.json", ["show"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_file_of_a_run_is_named(name: str, command: list[object], tmp_path: Path) -> None:
    run = shutil.copytree(RUN, tmp_path / "run")
    file = run / name
    file.write_bytes(file.read_bytes()[:-20])
    line = only_line(run_command_line(command[0], run, *command[1:]))
    assert str(run) in line
    assert file.name in line
    assert "unexpected" not in line
