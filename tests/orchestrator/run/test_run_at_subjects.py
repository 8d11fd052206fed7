"""A run whose modules are edited at the subjects says so, says what lacks a subject, and can be resumed only as such."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import Outcome
from tests.support.paths import PARITY

RECORDS = json.loads((PARITY / "llama-tiny" / "edits.json").read_text())[:20]
AT_SUBJECTS = ["--subject-modules", "model.layers.{0,1}.mlp.down_proj"]


@pytest.fixture
def edit(tmp_path: Path, ultraedit: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Runs with every third subject left out or not in the prompt."""
    edits = tmp_path / "edits.jsonl"
    names = {0: None, 1: "somebody else"}
    asked = [{"prompt": r["prompt"], "target": r["ans"], "subject": names.get(i, r["subject"])} for i, r in enumerate(RECORDS)]
    edits.write_text("".join(json.dumps({k: v for k, v in record.items() if v}) + "\n" for record in asked))
    fixed = ["--modules", "model.layers.2.mlp.up_proj", "--learning-rate", "1e-3", "--edits-per-turn", "10", "--tracking-uri", "none"]
    return lambda *flags: ultraedit("edit", "--model", PARITY / "llama-tiny" / "model", "--edits", edits, *fixed, "--generate", "0", *flags)


def test_what_has_no_subject_is_counted_and_said(edit: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = edit("--output", tmp_path / "out", *AT_SUBJECTS)
    assert outcome.code == 0, outcome.stderr
    assert "2: model.layers.0.mlp.down_proj, model.layers.1.mlp.down_proj at the subject" in outcome.stderr
    assert "subjects: 2 of 20 edits have no subject that stands in their prompt" in outcome.stderr
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["without_subject"] == 2
    turns = [json.loads(line) for line in (tmp_path / "out" / "turns.jsonl").read_text().splitlines()]
    assert [turn["subjects"] for turn in turns] == [8, 10]


def test_what_comes_without_a_subject_is_about_the_name_in_its_prompt(edit: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = edit("--output", tmp_path / "out", *AT_SUBJECTS, "--find-subjects")
    assert outcome.code == 0, outcome.stderr
    assert "subjects: 1 of 20 edits have no subject that stands in their prompt" in outcome.stderr  # "somebody else" is what a person gave
    turns = [json.loads(line) for line in (tmp_path / "out" / "turns.jsonl").read_text().splitlines()]
    assert [turn["subjects"] for turn in turns] == [9, 10]


def test_nothing_is_said_where_no_module_wants_a_subject(edit: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = edit("--output", tmp_path / "out", "--subject-modules", "none")
    assert outcome.code == 0, outcome.stderr
    assert "subject" not in outcome.stderr
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["without_subject"] == 0


def test_a_run_goes_on_with_the_same_modules_at_the_same_rows_only(edit: Callable[..., Outcome], tmp_path: Path) -> None:
    assert edit("--output", tmp_path / "out", *AT_SUBJECTS).code == 0
    other = edit("--output", tmp_path / "out", "--resume", "auto", *AT_SUBJECTS, "--subject-scale", "0.5")
    assert other.errors == ["error: resume: subject_scale was 0.1 in the run that is there, now it is 0.5; give the same, or --overwrite"]
