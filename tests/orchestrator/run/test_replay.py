"""Going back gives exactly the model that was, or that would have been."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import Outcome
from tests.support.tiny_runs import PER_TURN, RECORDS, TURNS, digests, ledger, with_ids, write_records


@pytest.mark.parametrize("to_turn", [8, *(pytest.param(turn, marks=pytest.mark.thorough) for turn in (9, 5, 4, 1))])
def test_rollback_gives_the_bits_of_that_turn(to_turn: int, run: Callable[..., Path], ultraedit: Callable[..., Outcome]) -> None:
    """A run of so many turns is the oracle."""
    out = run("out", RECORDS)
    turns = [json.loads(line) for line in (out / "turns.jsonl").read_text().splitlines()]
    outcome = ultraedit("rollback", out, "--to-turn", to_turn)
    assert outcome.code == 0, outcome.stderr
    kept = [json.loads(line) for line in (out / "turns.jsonl").read_text().splitlines()]
    assert [(t["turn"], t["loss"], t["shift_norms"]) for t in kept] == [(t["turn"], t["loss"], t["shift_norms"]) for t in turns[:to_turn]]
    assert digests(out) == digests(run("short", RECORDS[: to_turn * PER_TURN]))
    rolled_back = [turn for turn, _, outcome in ledger(out) if outcome == "rolled back"]
    assert sorted(set(rolled_back)) == list(range(to_turn + 1, TURNS + 1))
    assert json.loads((out / "metrics.json").read_text())["edits"] == to_turn * PER_TURN


def test_rollback_to_the_beginning_is_the_unedited_model(run: Callable[..., Path], ultraedit: Callable[..., Outcome]) -> None:
    out = run("out", RECORDS)
    assert ultraedit("rollback", out, "--to-turn", 0).code == 0
    stored = json.loads((out / "run.json").read_text())
    assert stored["digests_after"] == stored["digests_before"]


@pytest.mark.thorough
@pytest.mark.parametrize("to_turn", [2, 6])
def test_rollback_knows_the_warm_up(to_turn: int, run: Callable[..., Path], ultraedit: Callable[..., Outcome]) -> None:
    """From a checkpoint as from the very beginning, where the first edits come from the ledger."""
    flags = ("--warm-up", "15", "--preserve", "sketch", "--preserve-rank", "8", "--preserve-text", "everyday")
    out = run("out", RECORDS, *flags)
    turns = [json.loads(line) for line in (out / "turns.jsonl").read_text().splitlines()]
    assert ultraedit("rollback", out, "--to-turn", to_turn).code == 0
    kept = [json.loads(line) for line in (out / "turns.jsonl").read_text().splitlines()]
    assert [(t["turn"], t["loss"], t["shift_norms"]) for t in kept] == [(t["turn"], t["loss"], t["shift_norms"]) for t in turns[:to_turn]]
    if to_turn * PER_TURN >= 15:
        assert digests(out) == digests(run("short", RECORDS[: to_turn * PER_TURN], *flags))


@pytest.mark.thorough
def test_rollback_twice_and_on_again_is_exact(run: Callable[..., Path], ultraedit: Callable[..., Outcome], tmp_path: Path) -> None:
    out = run("out", RECORDS[: 6 * PER_TURN])
    assert ultraedit("rollback", out, "--to-turn", 5).code == 0
    more = write_records(tmp_path / "more.jsonl", RECORDS[6 * PER_TURN : 8 * PER_TURN])
    assert ultraedit("edit", "--resume", out, "--edits", more).code == 0
    once = digests(out)
    assert ultraedit("rollback", out, "--to-turn", 6).code == 0
    assert ultraedit("rollback", out, "--to-turn", 5).code == 0
    assert ultraedit("edit", "--resume", out, "--edits", more).code == 0
    assert digests(out) == once
    history = ultraedit("history", out)
    assert history.code == 0
    assert "rolled back" in history.stdout


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param(["e0"], id="first"),
        pytest.param(["e13"], id="middle", marks=pytest.mark.thorough),
        pytest.param(["e59"], id="last", marks=pytest.mark.thorough),
        pytest.param(["e3", "e25", "e26"], id="three"),
    ],
)
def test_removing_edits_equals_never_having_asked(ids: list[str], run: Callable[..., Path], ultraedit: Callable[..., Outcome]) -> None:
    records = with_ids(RECORDS)
    out = run("out", records)
    outcome = ultraedit("remove", out, *[flag for i in ids for flag in ("--edit", i)])
    assert outcome.code == 0, outcome.stderr
    without = run("without", [r for r in records if r["id"] not in ids])
    assert digests(out) == digests(without)
    assert [outcome for *_, outcome in ledger(out)] == ["applied"] * (TURNS * PER_TURN - len(ids))
    removed = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [line["content"]["id"] for line in removed] == ids


@pytest.mark.thorough
@pytest.mark.parametrize("removed", ["e3", "e40"])
def test_a_removed_edit_leaves_the_warm_up_too(removed: str, run: Callable[..., Path], ultraedit: Callable[..., Outcome]) -> None:
    records, flags = with_ids(RECORDS), ("--warm-up", "15")
    out = run("out", records, *flags)
    assert digests(out) != digests(run("cold", records))
    assert ultraedit("remove", out, "--edit", removed).code == 0
    assert digests(out) == digests(run("without", [r for r in records if r["id"] != removed], *flags))


@pytest.mark.parametrize(
    "flags",
    [["rollback", "--to-turn", "10"], ["rollback", "--to-turn", "-1"], ["remove", "--edit", "nothere"]],
    ids=["the-last-turn", "a-turn-below-0", "an-unknown-edit"],
)
def test_what_is_not_there_is_refused_in_one_line_and_the_run_stays(
    flags: list[str], run: Callable[..., Path], ultraedit: Callable[..., Outcome]
) -> None:
    out = run("out", RECORDS)
    before = digests(out)
    outcome = ultraedit(flags[0], out, *flags[1:])
    assert outcome.code == 1
    assert len(outcome.errors) == 1
    assert digests(out) == before


def test_an_overwritten_edit_is_no_failure(run: Callable[..., Path]) -> None:
    records = with_ids(RECORDS[: 2 * PER_TURN])
    later = [{"id": "later", "prompt": records[0]["prompt"], "target": "Turkish"}]
    out = run("out", records + later, "--eval")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["overwritten"] == 1
    import pyarrow.parquet as pq

    rows = pq.read_table(out / "edits.parquet").to_pylist()
    assert [row["id"] for row in rows if row["overwritten"]] == ["e0"]
    standing = [row["efficacy"] for row in rows if not row["overwritten"]]
    assert metrics["efficacy"] == pytest.approx(sum(standing) / len(standing))
