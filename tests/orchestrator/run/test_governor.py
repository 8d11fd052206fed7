"""A model that breaks is noticed, in words, and the run does what it was told to do then."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.run.coordinator import Collapsed
from tests.support.command_line import Outcome
from tests.support.paths import PARITY
from tests.support.scripted_worker import ScriptedWorker, read_metrics, run_scripted
from tests.support.tiny_runs import PER_TURN, arguments, digests, ledger


def turns(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "turns.jsonl").read_text().splitlines()]


def test_health_is_measured_at_the_first_turn_every_few_and_at_the_last(tmp_path: Path) -> None:
    worker = ScriptedWorker()
    out = run_scripted(tmp_path, worker, count=14, watch_every=3)
    assert worker.measured == [1, 3, 6, 7]
    assert [row["turn"] for row in turns(out) if row["vitals"]] == [1, 3, 6, 7]


def test_a_limit_is_warned_of_once_and_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="ultraedit"):
        out = run_scripted(tmp_path, ScriptedWorker(growth=0.4, sick_from=3), count=14, watch_every=1)
    said = [r.getMessage() for r in caplog.records if "collapse" in r.getMessage()]
    assert len(said) == 3, said
    assert "after turn 1 the norm of m has grown by 40% (limit 30%)" in said[0]
    assert read_metrics(out)["turns"] == 7
    assert "collapse" not in read_metrics(out)


def test_stop_ends_the_run_whole_and_loses_no_edit(tmp_path: Path) -> None:
    with pytest.raises(Collapsed, match=r"stopped after turn 3: .*limit") as caught:
        run_scripted(tmp_path, ScriptedWorker(sick_from=3), count=14, watch_every=1, lookahead=4, on_collapse="stop")
    out = tmp_path / "out"
    assert caught.value.healthy_turn == 2
    assert read_metrics(out)["edits"] == 6
    assert read_metrics(out)["collapse"].startswith("stopped after turn 3")
    assert [(turn, outcome) for turn, _, outcome in ledger(out)][6:] == [(4, "rolled back"), (4, "rolled back")]
    aside = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [line["record"] for line in aside] == [7, 8]  # read with the third turn; what comes after was not read yet


@pytest.mark.thorough
@pytest.mark.parametrize("action", ["stop", "rollback"])
def test_a_real_run_stops_or_goes_back_to_the_last_healthy_turn(action: str, tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    """The oracle is a run that was told to stop there by a limit on its edits."""
    records = PARITY / "llama-tiny" / "edits.json"
    free = tmp_path / "free"
    assert ultraedit(*arguments(records, free)).code == 0
    growth = [max(row["weight_growth"].values()) for row in turns(free)]
    limit = (growth[4] + growth[5]) / 2  # passed by turn 6 first, if growth grows
    assert all(g <= limit for g in growth[:5])
    out = tmp_path / "out"
    others = ["--min-probe-retention", "0", "--max-perplexity-growth", "1e9"]
    outcome = ultraedit(*arguments(records, out, "--watch-every", "1", "--on-collapse", action, "--max-weight-growth", limit, *others))
    assert outcome.code == 3, outcome.stderr
    assert len(outcome.errors) == 1
    assert "stopped after turn 6" in outcome.errors[0]
    kept = 6 if action == "stop" else 5
    assert len(turns(out)) == kept
    assert json.loads((out / "metrics.json").read_text())["edits"] == kept * PER_TURN
    if action == "stop":
        short = tmp_path / "short"
        assert ultraedit(*arguments(records, short, "--limit", kept * PER_TURN)).code == 0
        assert digests(out) == digests(short)
    else:
        assert ultraedit("rollback", free, "--to-turn", kept).code == 0
        assert digests(out) == digests(free)
    # and the run can go on with what was not asked for yet
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"prompt": "A new fact is", "target": "new"}))
    flags = ["--limit", "1", "--on-collapse", "warn"]
    resumed = ultraedit("edit", "--resume", out, "--edits", more, *flags)
    assert resumed.code == (0 if action == "rollback" else 1), resumed.stderr


def test_milestones_are_evaluated_on_the_way(tmp_path: Path) -> None:
    out = run_scripted(tmp_path, ScriptedWorker(), count=14, eval_at=(4, 9), eval_sample=3)
    found = read_metrics(out)["milestones"]
    assert [(row["edits"], row["evaluated"], row["efficacy"]) for row in found] == [(4, 3, 1.0), (10, 3, 1.0)]
    assert (out / "plots" / "lifelong.png").is_file()
    assert read_metrics(out)["evaluated"] == 3
