"""A run measures the perplexity of a text that nothing holds; so does ``ultraedit evaluate``, with the same figure."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import Outcome
from tests.support.tiny_runs import MODEL, RECORDS, arguments, write_records


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    return write_records(tmp_path / "edits.jsonl", RECORDS[:12])


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("One passage of a few words.\n\nAnother one, of a few words more.\n")
    return path


def test_a_run_and_evaluate_measure_the_same(edits: Path, passages: Path, tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    out = tmp_path / "out"
    outcome = ultraedit(*arguments(edits, out, "--eval", "--perplexity-text", passages))
    assert outcome.code == 0, outcome.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["perplexity"] != metrics["perplexity_before"] > 1
    assert f"{metrics['perplexity_before']:.3f}  {metrics['perplexity']:.3f}" in outcome.stdout
    again = ultraedit(
        "evaluate", "--model", out / "model", "--base", MODEL, "--edits", edits, "--perplexity-text", passages, "--output", tmp_path / "m"
    )
    assert again.code == 0, again.stderr
    measured = json.loads((tmp_path / "m").read_text())
    for name in ("perplexity", "perplexity_before"):
        assert measured[name] == pytest.approx(metrics[name], rel=1e-4), name


def test_the_shipped_text_is_the_default_and_none_measures_none(edits: Path, tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    found = {}
    for name, more in (("default", ()), ("named", ("--perplexity-text", "held-out")), ("none", ("--perplexity-text", "none"))):
        assert ultraedit(*arguments(edits, tmp_path / name, "--eval", *more)).code == 0
        found[name] = json.loads((tmp_path / name / "metrics.json").read_text()).get("perplexity")
    assert found["default"] == found["named"]
    assert found["none"] is None


def test_a_text_that_is_not_there_stops_before_anything_is_loaded(edits: Path, tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    outcome = ultraedit(*arguments(edits, tmp_path / "out", "--perplexity-text", tmp_path / "nothing"))
    assert outcome.code != 0
    assert outcome.stderr.splitlines()[-1].endswith("nothing: No such file or directory; expected a text file, held-out or none")
    assert not (tmp_path / "out").exists()
