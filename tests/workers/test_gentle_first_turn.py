"""The turn that finds the learning rate is done again: at half the strength while it does harm, at a higher one while too little of it holds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from editing import EditRequest
from editing import editor as editor_module
from editing.errors import TurnRefused
from editing.turn import PreparedTurn, Turn, TurnReport, in_turns, tokenize
from tests.support.paths import PARITY
from workers.protocol import WorkerSpec
from workers.worker import LocalWorker

MODEL = PARITY / "llama-tiny" / "model"
FACTS = [EditRequest(f"The colour of number {i} is", f"blue {i}") for i in range(6)]
OPTIONS: dict[str, Any] = {"passes": 1, "preserve": "off", "preserve_text": "none", "edits_per_turn": 3, "strength": 0.3}
SPEC = WorkerSpec(model=str(MODEL), device="cpu", modules=("layers.{1,2}.mlp.down_proj",), options=OPTIONS, watch_size=0)


def loaded(spec: WorkerSpec = SPEC, retentions: list[float] | None = None) -> LocalWorker:
    """A worker; with retentions, what its probes are said to keep, one look after the other."""
    worker = LocalWorker(spec)
    worker.load()
    if retentions is not None:
        worker._health.probe_retention = lambda: retentions.pop(0)  # type: ignore[method-assign]
    return worker


def turn_of(worker: LocalWorker, facts: list[EditRequest]) -> PreparedTurn:
    [turn] = worker.prepare(list(in_turns((tokenize(worker.joiner, fact, max_tokens=None) for fact in facts), 3)))
    return turn


def prepared(worker: LocalWorker) -> list[PreparedTurn]:
    turns: list[Turn] = list(in_turns((tokenize(worker.joiner, fact, max_tokens=None) for fact in FACTS), 3))
    return worker.prepare(turns)


@pytest.mark.parametrize(("retentions", "halvings"), [([0.6], 0), ([0.2, 0.4, 0.5], 2), ([0.0, 0.1, 0.2, 0.3], 4)])
def test_strength_is_halved_until_the_probes_keep_their_answers_four_times_at_most(retentions: list[float], halvings: int) -> None:
    gentle, plain = (
        loaded(replace(SPEC, min_probe_retention=0.5), retentions),
        loaded(replace(SPEC, options={**OPTIONS, "strength": 0.3 / 2**halvings})),
    )
    for worker in (gentle, plain):
        turns = prepared(worker)
        worker.observe(turns[1])  # a warm-up, which a halving must not forget
    report, expected = gentle.apply(prepared(gentle)[0]), plain.apply(prepared(plain)[0])
    assert report.halvings == halvings
    assert not retentions
    assert report.rate == pytest.approx(expected.rate, rel=1e-12)
    assert gentle.digest() == plain.digest()


def with_goal(monkeypatch: pytest.MonkeyPatch, held: list[float], retentions: list[float] | None = None) -> LocalWorker:
    """A worker whose first turn is to hold by half, and is said to hold by what is given, one look after the other."""
    monkeypatch.setattr(editor_module, "ENOUGH", 3)
    worker = loaded(replace(SPEC, options={**OPTIONS, "strength_goal": 0.5}, min_probe_retention=0.5 if retentions else 0.0), retentions)
    monkeypatch.setattr(worker.editor, "_held", lambda _prepared: held.pop(0))
    return worker


@pytest.mark.parametrize(
    ("held", "retentions", "share"),
    [
        ([0.6], None, 0.5),
        ([0.1, 0.3, 0.5], None, 2**0.5),  # by 2, since less than half of the goal holds, then by its root
        ([0.1, 0.3, 0.3], None, 1.0),  # no more is learnt, so what was before stays
        ([0.1, 0.3, 0.4], [0.9, 0.8, 0.2], 1.0),  # harm, so what was before stays
        ([0.1 + 0.01 * i for i in range(7)], None, 32.0),  # six times at most
    ],
)
def test_strength_is_raised_until_the_first_turn_holds(
    held: list[float], retentions: list[float] | None, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = with_goal(monkeypatch, held, retentions)
    report = worker.apply(prepared(worker)[0])
    assert not held
    assert not retentions
    assert report.strength == pytest.approx(0.3 * share)
    plain = loaded(replace(SPEC, options={**OPTIONS, "strength": 0.3 * share}))
    expected = plain.apply(prepared(plain)[0])
    assert report.rate == pytest.approx(expected.rate, rel=1e-12)
    assert worker.digest() == plain.digest()
    assert worker.editor.turns == 1


def test_a_first_turn_of_few_edits_and_one_that_does_harm_are_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    harmful = with_goal(monkeypatch, [], [0.2, 0.9])
    report = harmful.apply(prepared(harmful)[0])
    assert (report.halvings, report.strength) == (1, pytest.approx(0.3 / 4))  # from half of it on
    few = with_goal(monkeypatch, [])
    monkeypatch.setattr(editor_module, "ENOUGH", 4)
    assert few.apply(prepared(few)[0]).strength == 0.3


def test_a_rate_that_few_edits_have_found_is_found_anew_by_the_first_turn_of_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker = with_goal(monkeypatch, [])
    few, enough, later = (turn_of(worker, facts) for facts in (FACTS[:2], FACTS[2:5], FACTS[1:4]))
    assert worker.apply(few).strength == 0.3
    worker.save_state(tmp_path / "state")
    resumed = with_goal(monkeypatch, [0.1, 0.5])
    resumed.load_state(tmp_path / "state", None)
    report = resumed.apply(enough)
    assert report.strength == pytest.approx(0.3)  # from half of it on, then by 2
    plain = loaded()
    plain.load_state(tmp_path / "state", None)
    plain.editor.lifelong = replace(plain.editor.lifelong, rate=None)
    expected = plain.apply(enough)
    assert (report.turn, report.rate) == (2, pytest.approx(expected.rate, rel=1e-12))
    assert resumed.digest() == plain.digest()
    assert resumed.apply(later).strength is None
    resumed.save_state(tmp_path / "later")
    again = with_goal(monkeypatch, [])
    again.load_state(tmp_path / "later", None)
    assert again.apply(turn_of(again, FACTS[:3])).rate == report.rate


def test_a_raised_strength_that_is_refused_leaves_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = with_goal(monkeypatch, [0.1])
    write, shares = worker.editor._write, []

    def refuses_full_strength(*arguments: Any, strength_share: float) -> TurnReport:
        shares.append(strength_share)
        if strength_share == 1.0:
            raise TurnRefused("its shift is not finite")
        return write(*arguments, strength_share=strength_share)

    monkeypatch.setattr(worker.editor, "_write", refuses_full_strength)
    assert worker.apply(prepared(worker)[0]).strength == pytest.approx(0.15)
    assert shares == [0.5, 1.0, 0.5]


def test_what_holds_is_really_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor_module, "ENOUGH", 3)
    worker = loaded(replace(SPEC, options={**OPTIONS, "strength": 0.01, "strength_goal": 0.6}))
    turn = prepared(worker)[0]
    report = worker.apply(turn)
    assert report.strength is not None
    assert report.strength > 0.01
    assert worker.editor._held(turn) == sum(all(rights) for rights in worker.editor._rights(turn, range(3))) / 3


def test_the_probes_are_really_asked_and_later_turns_are_not_done_again(tmp_path: Path) -> None:
    strong = replace(SPEC, options={**OPTIONS, "strength": 2.0}, min_probe_retention=1.0)
    worker = loaded(strong)
    first, second = (worker.apply(turn) for turn in prepared(worker))
    assert (first.halvings, second.halvings) == (4, 0)
    assert first.rate == second.rate
    worker.save_state(tmp_path / "state")
    resumed = loaded(strong)
    resumed.load_state(tmp_path / "state", None)
    assert resumed.apply(prepared(resumed)[0]).halvings == 0


def test_a_given_learning_rate_is_taken_as_it_is() -> None:
    options = {name: value for name, value in OPTIONS.items() if name != "strength"}
    worker = loaded(replace(SPEC, learning_rate=0.5, options=options, min_probe_retention=1.0))
    assert worker.apply(prepared(worker)[0]).halvings == 0
