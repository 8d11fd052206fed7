"""Runs side by side say what each one measured, and when they are not the same experiment."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import Outcome
from tests.support.paths import ROOT
from tests.support.tiny_runs import RECORDS

MEASURED = ("--eval", "--generate", "4", "--watch-every", "5")


@pytest.fixture
def two(run: Callable[..., Path]) -> list[Path]:
    return [run("slow", RECORDS[:12], *MEASURED), run("fast", RECORDS[:12], *MEASURED, "--learning-rate", "2e-3")]


def test_each_run_has_a_column_with_its_own_figures(two: list[Path], ultraedit: Callable[..., Outcome]) -> None:
    outcome = ultraedit("compare", *two)
    assert outcome.code == 0, outcome.stderr
    lines = {line[:24].strip(): line[24:].split() for line in outcome.stdout.splitlines()}
    metrics = [json.loads((path / "metrics.json").read_text()) for path in two]
    assert outcome.stdout.split()[:2] == ["slow", "fast"]
    assert lines["learning rate"] == ["0.001", "0.002"]
    assert lines["efficacy"] == [f"{m['efficacy']:.3f}" for m in metrics]
    assert metrics[0]["efficacy"] != metrics[1]["efficacy"]
    assert lines["total seconds"] == [f"{m['seconds']['total']:.1f}" for m in metrics]
    last = [json.loads((path / "turns.jsonl").read_text().splitlines()[-1])["vitals"] for path in two]
    assert lines["perplexity growth"] == [f"{v['perplexity_growth']:.3f}" for v in last]
    assert "not the same experiment" not in outcome.stdout


def test_json_has_the_same(two: list[Path], ultraedit: Callable[..., Outcome]) -> None:
    found = json.loads(ultraedit("compare", *two, "--json").stdout)
    assert [row["run"] for row in found] == list(map(str, two))
    assert [row["efficacy"] for row in found] == [json.loads((path / "metrics.json").read_text())["efficacy"] for path in two]


def test_what_cannot_be_compared_is_said(two: list[Path], run: Callable[..., Path], tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    other = run("other", RECORDS[:18], *MEASURED, "--generate", "2", "--framings", "raw,question")
    old = shutil.copytree(ROOT / "tests" / "data" / "run-0.1.0" / "finished", tmp_path / "old")  # of a version that knew less
    said = " ".join(ultraedit("compare", two[0], other, old).stdout.split())
    notes = said.partition("not the same experiment: ")[2]
    assert notes.startswith(
        "other has other edits, 18 edits that were measured, not 12, 2 edits that text was generated for, not 4, other framings than slow"
    )
    assert "old has other edits" in notes


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["slow"], "expected two runs or more"),
        (["slow", "slow"], "found this one twice"),
        (["slow", "nowhere"], "nowhere: holds no run.json"),
        (["slow", "damaged"], "damaged: its run.json or metrics.json is damaged (KeyError: 'seconds')"),
    ],
    ids=["one run", "one run twice", "no run", "a damaged run"],
)
def test_bad_input_is_one_line(names: list[str], said: str, two: list[Path], tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    damaged = shutil.copytree(two[1], tmp_path / "damaged")
    metrics = json.loads((damaged / "metrics.json").read_text())
    del metrics["seconds"]
    (damaged / "metrics.json").write_text(json.dumps(metrics))
    outcome = ultraedit("compare", *(tmp_path / name for name in names))
    assert outcome.code != 0
    assert said in outcome.stderr.splitlines()[-1]
