"""Further passes of a turn leave fewer rows pending, count no edit twice, and are applied with the first one or not at all."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from editing import Editor, TurnRefused
from editing.method.rows import TurnRows
from editing.turn import PreparedTurn, Turn, tokenize
from tests.support.oracles import ridge_in_float64
from tests.support.small_editor import FACTS, editor, requests


def prepared(one: Editor, count: int = len(FACTS)) -> PreparedTurn:
    return one.prepare([Turn.of([tokenize(one.tokenizer, request, max_tokens=None) for request in requests(count)])])[0]


def weights(one: Editor) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in one.weights.items()}


def test_further_passes_leave_fewer_rows_pending() -> None:
    published, refined = editor(), editor(passes=4)
    (once,), (more,) = published.apply(requests()), refined.apply(requests())
    assert once.num_pending_rows == more.num_pending_rows[:1]
    assert len(more.num_pending_rows) == 4
    assert more.num_pending_rows == sorted(more.num_pending_rows, reverse=True)
    assert more.num_pending_rows[-1] < more.num_pending_rows[1]
    assert more.efficacy_after > once.efficacy_after + 0.1
    assert more.seconds["refine"] > 0
    assert "refine" not in once.seconds


def test_a_turn_ends_when_no_row_is_pending() -> None:
    enough, more = editor(passes=30), editor(passes=60)
    (report,), (other,) = enough.apply(requests()), more.apply(requests())
    assert report.num_pending_rows[-1] == 0
    assert len(report.num_pending_rows) < 30
    assert report.efficacy_after == 1
    assert other.num_pending_rows == report.num_pending_rows
    assert more.digests() == enough.digests()


def test_the_second_pass_solves_for_pending_rows_with_the_moments_of_the_first() -> None:
    """By hand: the model after one pass is captured again, and its normal equations are solved in float64."""
    one, two = editor(), editor(passes=2)
    turn = prepared(one)
    one.apply_turn(turn)
    two.apply_turn(prepared(two))
    rows = one.capture(turn)
    assert rows.correct.any()
    assert not rows.correct.all()
    for name, weight in one.weights.items():
        (d_in, d_out), keys = one.shards[name].shape, rows.keys[name].double()
        moments = one.moments[d_in, d_out]
        normal = (torch.cat((keys, rows.value_gradients[name].double()), 1) - moments.mean) / moments.std
        goal = -1e-3 * normal[:, :d_in].square().sum(1, keepdim=True) * normal[:, d_in:]
        goal[rows.correct] = 0
        change = (two.weights[name] - weight).T.double()
        expected = ridge_in_float64(keys, goal, 1.0)
        assert (change - expected).norm() / expected.norm() < 1e-3


@pytest.mark.parametrize("margin", [0.0, 0.2, 1.0])
def test_a_row_is_pending_until_its_answer_leads_by_the_margin(margin: float) -> None:
    one = editor(passes=3)
    one.apply(requests())
    one.capture.config = replace(one.config, margin=margin)
    rows = one.capture(prepared(one))
    expected = []
    for edit in prepared(one).turn.edits:
        ids = edit.sequence
        with torch.no_grad():
            logits = one.model(input_ids=torch.tensor([ids.input_ids])).logits[0, ids.first_row :].log_softmax(-1)
        for scores, answer in zip(logits, ids.answer_ids, strict=True):
            others = torch.cat((scores[:answer], scores[answer + 1 :]))
            expected.append(bool(scores[answer] - others.max() >= margin))
    assert (~rows.pending).tolist() == expected
    assert any(expected)
    assert not all(expected)


def test_a_larger_margin_goes_on_for_longer() -> None:
    leads = []
    for margin in (0.0, 2.0):
        (report,) = editor(passes=12, margin=margin).apply(requests())
        leads.append(len(report.num_pending_rows))
    assert leads[0] < leads[1]


def test_moments_count_an_edit_once() -> None:
    one, three = editor(), editor(passes=3)
    one.apply(requests())
    three.apply(requests())
    for shape, moments in one.moments.items():
        assert three.moments[shape].count == moments.count
        assert torch.equal(three.moments[shape].sum_of_squares, moments.sum_of_squares)


def test_norms_are_those_of_all_passes_together() -> None:
    one = editor(passes=3)
    before = weights(one)
    (report,) = one.apply(requests())
    for name, weight in one.weights.items():
        assert report.shift_norms[name] == pytest.approx(float((weight - before[name]).norm()), rel=1e-3)


def _not_a_number(rows: TurnRows) -> TurnRows:
    next(iter(rows.value_gradients.values()))[0] = torch.nan
    return rows


def _interrupted(_rows: TurnRows) -> TurnRows:
    raise KeyboardInterrupt


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("fault", "error"), [(_not_a_number, TurnRefused), (_interrupted, KeyboardInterrupt)])
def test_a_turn_that_fails_in_a_later_pass_leaves_nothing_behind(
    dtype: str, fault: Callable[[TurnRows], TurnRows], error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = editor(passes=3, dtype=dtype)
    one.apply(requests(2))
    before, masters, moments = one.digests(), {n: m.clone() for n, m in one.weights.masters.items()}, dict(one.moments)
    gathered, calls = TurnRows.gathered, []

    def third_time(rows: TurnRows, collectives: Any, shares: Any) -> TurnRows:
        calls.append(one.digests())
        return fault(gathered(rows, collectives, shares)) if len(calls) == 3 else gathered(rows, collectives, shares)

    monkeypatch.setattr(TurnRows, "gathered", third_time)
    turn = prepared(one)
    with pytest.raises(error):
        one.apply_turn(turn)
    assert calls[0] == before
    assert before != calls[1] != calls[2] != before  # weights had been changed by then
    assert one.digests() == before
    assert one.moments == moments
    assert one.turns == 1
    assert all(torch.equal(one.weights.masters[name], master) for name, master in masters.items())
