"""A plot begins with the unedited model and ends with the last turn."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from orchestrator.run import plots
from orchestrator.run.plots import plot_run, vitals_by_edits
from tests.support.command_line import TICKS, Outcome
from tests.support.paths import PARITY
from tests.support.tiny_runs import arguments


def turns(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "turns.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, ultraedit: Callable[..., Outcome]) -> dict[str, Path]:
    """The same 60 edits in ten turns: measured after every one, and as seldom as can be."""
    folder = tmp_path_factory.mktemp("runs")
    for name, every in (("often", 1), ("seldom", 1000)):
        outcome = ultraedit(*arguments(PARITY / "llama-tiny" / "edits.json", folder / name, "--watch-every", every))
        assert outcome.code == 0, outcome.stderr
    return {name: folder / name for name in ("often", "seldom")}


def test_the_first_and_the_last_turn_are_always_measured_and_nothing_else_changes(runs: dict[str, Path]) -> None:
    often, seldom = turns(runs["often"]), turns(runs["seldom"])
    assert [row["turn"] for row in seldom if row["vitals"]] == [1, 10]
    assert all(row["vitals"] for row in often)
    assert [row["vitals"] for row in (seldom[0], seldom[-1])] == [row["vitals"] for row in (often[0], often[-1])]
    digests = [json.loads((out / "run.json").read_text())["digests_after"] for out in runs.values()]
    assert digests[0] == digests[1]


def test_the_unedited_model_is_point_0(runs: dict[str, Path]) -> None:
    history = turns(runs["seldom"])
    vitals = vitals_by_edits(history)
    assert list(vitals) == [0, 6, 60]
    first = history[0]
    before = vitals[0]
    assert before["probe_retention"] == 1.0
    assert before["perplexity"] == pytest.approx(first["vitals"]["perplexity"] / first["vitals"]["perplexity_growth"])
    assert before["efficacy_after"] == before["watch_efficacy"] == first["efficacy_before"]  # the sample of six edits is the whole first turn
    assert before["watch_locality_retention"] == 1.0


def test_a_run_of_version_0_1_0_has_a_point_0_too() -> None:
    history = turns(PARITY.parent / "run-0.1.0" / "finished")
    vitals = vitals_by_edits(history)
    first = next(row["vitals"] for row in history if row["vitals"])
    assert vitals[0]["perplexity"] == first["perplexity"] / first["perplexity_growth"]
    assert vitals[0]["probe_retention"] == 1.0


def test_the_curves_are_drawn_from_0_edits_to_the_last(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_LAYOUT", "constrained")
    monkeypatch.setattr(plots, "_DPI", 110)
    for name in TICKS:
        monkeypatch.setitem(matplotlib.rcParams, name, True)
    drawn: dict[str | None, list[int]] = {}
    plain = plots._curve

    def noting(axes: Any, edits: Any, values: Any, label: str | None, **style: Any) -> list[Any]:
        drawn[label] = list(edits)
        return plain(axes, edits, values, label, **style)

    monkeypatch.setattr(plots, "_curve", noting)
    plot_run(turns(runs["seldom"]), tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000
    for label in ("efficacy", "efficacy, unedited model", "locality retention", "efficacy of the turn's own edits", "fixed probes retained", None):
        assert (drawn[label][0], drawn[label][-1]) == (0, 60)
