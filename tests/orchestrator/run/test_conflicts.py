"""Two targets for one prompt: the later one wins, and it is said."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from editing.requests import EditRequest
from orchestrator.run.conflicts import PromptIndex
from orchestrator.run.ledger_evaluation import _overruled
from tests.support.command_line import Outcome
from tests.support.tiny_runs import PER_TURN, RECORDS, digests, ledger, with_ids, write_records


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=12))
def test_an_edit_is_overruled_by_any_later_one_with_another_target(edits: list[tuple[int, int]]) -> None:
    expected = [any(q == p and u != t for q, u in edits[i + 1 :]) for i, (p, t) in enumerate(edits)]
    columns = np.array(edits, dtype=np.int64).reshape(-1, 2)
    assert _overruled(columns[:, 0], columns[:, 1]).tolist() == expected


def test_the_index_tells_what_is_overruled() -> None:
    index = PromptIndex()
    assert index.add(EditRequest("a", "x"), 1, 1) is None
    assert index.add(EditRequest("a", "x"), 2, 1) is None
    conflict = index.add(EditRequest("a", "y"), 3, 2)
    assert conflict is not None
    assert (conflict.earlier_record, conflict.earlier_turn, conflict.record) == (2, 1, 3)
    assert index.add(EditRequest("a", "y"), 4, 3) is None


def test_a_conflict_is_reported_while_editing_also_after_a_resume(
    run: Callable[..., Path],
    ultraedit: Callable[..., Outcome],
    tmp_path: Path,
) -> None:
    records = with_ids(RECORDS[: 2 * PER_TURN])
    out = run("out", records)
    later = write_records(tmp_path / "later.jsonl", [{"id": "later", "prompt": records[0]["prompt"], "target": "Turkish"}])
    outcome = ultraedit("edit", "--resume", out, "--edits", later)
    assert outcome.code == 0, outcome.stderr
    line = next(line for line in outcome.stderr.splitlines() if line.startswith("conflict:"))
    assert "'Turkish'; it overrules record 1 of turn 1" in line
    last = json.loads((out / "turns.jsonl").read_text().splitlines()[-1])
    assert [c["earlier_record"] for c in last["conflicts"]] == [1]
    assert json.loads((out / "metrics.json").read_text())["conflicts"] == 1


def test_within_a_turn_the_later_target_alone_is_applied(run: Callable[..., Path], ultraedit: Callable[..., Outcome]) -> None:
    records = with_ids(RECORDS[: 2 * PER_TURN])
    first = {**records[2], "id": "first", "target": "Spanish"}
    both = run("both", [records[0], first, *records[1:]])
    assert digests(both) == digests(run("without", records))
    assert ledger(both)[1][2] == "superseded in the same turn"
    # taking the later one out brings the first one back
    assert ultraedit("remove", both, "--edit", records[2]["id"]).code == 0
    assert digests(both) == digests(run("first", [records[0], first, records[1], *records[3:]]))


@pytest.mark.parametrize("to_turn", [1, 2])
def test_a_turn_with_a_superseded_edit_is_replayed_exactly(
    to_turn: int,
    run: Callable[..., Path],
    ultraedit: Callable[..., Outcome],
) -> None:
    records = with_ids(RECORDS[: 4 * PER_TURN])
    first = {**records[2], "id": "first", "target": "Spanish"}
    out = run("out", [records[0], first, *records[1:]])
    plain = run("plain", records)
    for each in (out, plain):
        assert ultraedit("rollback", each, "--to-turn", to_turn).code == 0
    assert digests(out) == digests(plain)


def test_diff_shows_edits_health_and_weights_between_two_turns(run: Callable[..., Path], ultraedit: Callable[..., Outcome]) -> None:
    out = run("out", with_ids(RECORDS))
    outcome = ultraedit("diff", out, 2, 6, "--samples", 3)
    assert outcome.code == 0, outcome.stderr
    for words in ("turns 3 to 6", f"{4 * PER_TURN} edits applied", f"e{2 * PER_TURN}", "perplexity", "growth, turn 2"):
        assert words in outcome.stdout
    refused = ultraedit("diff", out, 3, 99)
    assert refused.code == 1
    assert len(refused.errors) == 1


def test_diff_of_a_run_that_was_rolled_back_to_its_beginning_is_refused_in_one_line(
    run: Callable[..., Path],
    ultraedit: Callable[..., Outcome],
) -> None:
    out = run("out", with_ids(RECORDS[:PER_TURN]))
    assert ultraedit("rollback", out, "--to-turn", 0).code == 0
    refused = ultraedit("diff", out, 0, 1)
    assert refused.code == 1
    assert refused.errors == ["error: turns: expected two turns from 0 to 0, the earlier one first, found 0 and 1"]


def test_diff_after_a_first_turn_that_was_refused(tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    from orchestrator.cli.run_tables import show_diff
    from tests.support.scripted_worker import ScriptedWorker, run_scripted

    screen = StringIO()
    show_diff(run_scripted(tmp_path, ScriptedWorker(refuse=[1], growth=0.01)), 1, 3, Console(file=screen, width=120))
    assert "0.00%" in screen.getvalue()
    assert "3.00%" in screen.getvalue()
