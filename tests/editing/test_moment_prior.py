"""Turns of few edits: usual scales from the start, and as many passes as a few edits are worth."""

from pathlib import Path
from typing import Any

import pytest
import torch

from editing import Editor, EditRequest
from editing.method.features import Features
from editing.method.lifelong import LifelongStatistics
from editing.method.moments import Moments
from editing.method.preserve import ExactRidge, SketchRidge, empty_ridge
from editing.method.rows import TurnRows
from editing.method.shift import Shift
from editing.method.solver import Solution, TurnSolver
from editing.moment_prior import FULL_TURN, read_statements
from editing.sharding.collectives import SingleWorker
from editing.sharding.shards import shard_of
from editing.state import load_state, save_state
from tests.support.small_editor import editor, requests

AT_BOTH: dict[str, Any] = {"preserve": "exact", "preserve_weight": 300.0, "subject_modules": ["layers.1.mlp.down_proj"]}
"""Options with statistics of every kind but whitening."""

WHOLE = Features(shard_of(torch.nn.Linear(8, 3)), "keys", SingleWorker())


def data(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def test_few_rows_are_filled_up_to_the_priors_count_and_many_are_left_alone() -> None:
    prior, few, many = (Moments.of_groups(data(n, n), [n], "exact") for n in (40, 10, 41))
    filled = few.filled_up(prior)
    # 30 rows as the prior's are: each of its rows counts three quarters
    weights = torch.cat((torch.ones(10), torch.full((40,), 0.75))).double()
    both = torch.cat((data(10, 10), data(40, 40))).double()
    mean = (weights.unsqueeze(1) * both).sum(0) / 40
    assert filled.count == 40
    torch.testing.assert_close(filled.mean, mean)
    torch.testing.assert_close(filled.sum_of_squares, (weights.unsqueeze(1) * (both - mean).square()).sum(0))
    assert many.filled_up(prior) is many


def test_both_forms_of_a_ridge_are_filled_up_alike() -> None:
    exact, sketch = (
        empty_ridge(form, WHOLE, 8).update(data(5, 1), WHOLE).filled_up(empty_ridge(form, WHOLE, 8).update(data(20, 2), WHOLE), WHOLE)
        for form in ("exact", "sketch")
    )
    assert isinstance(exact, ExactRidge)
    assert isinstance(sketch, SketchRidge)
    assert exact.count == sketch.count == 20
    expected = data(5, 1).double().T @ data(5, 1).double() + 0.75 * data(20, 2).double().T @ data(20, 2).double()
    torch.testing.assert_close(exact.moment.total, expected)
    kept = sketch.directions.T @ sketch.directions  # the whole sum: the rank is that of the keys
    torch.testing.assert_close(kept, expected)
    torch.testing.assert_close(sketch.squares, expected.diagonal())


def test_a_full_turn_has_the_bits_that_it_has_without_a_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [EditRequest(s.prompt.replace("is", "was"), s.target, subject=s.subject) for s in read_statements()]
    digests = []
    for small_turns in (False, True):
        one = editor(small_turns=small_turns, **AT_BOTH)
        monkeypatch.setattr(one, "_observe_prior", None)  # a call would fail
        one.apply(many + requests(), measure=False)
        digests.append(one.digests())
    assert digests[0] == digests[1]


def test_the_first_edit_is_solved_with_the_statements_statistics_and_counted_alone() -> None:
    one = editor(small_turns=True, edits_per_turn=1, **AT_BOTH)
    one.apply(requests(1), measure=False)
    prior = observed(editor(edits_per_turn=len(read_statements()), **AT_BOTH), read_statements())
    alone = observed(editor(edits_per_turn=1, **AT_BOTH), requests(1))
    filled = alone.filled_up(prior, one.shards, one.collectives)
    assert all(filled.moments[shape].count == moments.count for shape, moments in prior.moments.items())
    by_hand = editor(edits_per_turn=1, **AT_BOTH)
    by_hand._filled_up = lambda statistics: filled  # type: ignore[method-assign]
    by_hand.apply(requests(1), measure=False)
    assert one.digests() == by_hand.digests()
    assert same(one.lifelong, alone)


def test_the_prior_is_that_of_the_unedited_model_whenever_it_is_made(tmp_path: Path) -> None:
    whole = editor(small_turns=True, edits_per_turn=1, **AT_BOTH)
    whole.apply(requests(2), measure=False)
    first = editor(small_turns=True, edits_per_turn=1, **AT_BOTH)
    first.apply(requests(1), measure=False)
    save_state(first, tmp_path / "state")
    later = editor(small_turns=True, edits_per_turn=1, **AT_BOTH)
    load_state(later, tmp_path / "state")
    later.apply(requests(2)[1:], measure=False)
    assert later.digests() == whole.digests()


def test_the_learning_rate_of_a_strength_does_not_depend_on_how_few_edits_come_first() -> None:
    options: dict[str, Any] = {"learning_rate": None, "strength": 0.1, "small_turns": True, "preserve_neighbours": 0}
    rates = []
    for first in (1, 3):
        one = Editor.from_pretrained(editor().base.folder, modules=["layers.1.mlp.down_proj"], edits_per_turn=first, device="cpu", **options)
        rates.append(one.apply(requests(first), measure=False)[0].rate)
    assert rates[0] == rates[1]
    statements = Editor.from_pretrained(one.base.folder, modules=["layers.1.mlp.down_proj"], device="cpu", **{**options, "small_turns": False})
    (report,) = statements.apply(read_statements(), measure=False)
    assert rates[0] == pytest.approx(report.rate * len(read_statements()) / FULL_TURN, rel=1e-6)


@pytest.mark.parametrize(("passes", "edits", "most"), [(1, 1, 1), (2, 1, 20), (2, 3, 6), (3, 5, 6), (3, 6, 3), (2, 100, 2)])
def test_a_turn_of_few_edits_may_take_as_many_passes_as_ten_edits_do(passes: int, edits: int, most: int) -> None:
    assert editor(small_turns=True, passes=passes).config.passes_of(edits) == most
    assert editor(passes=passes).config.passes_of(edits) == passes


def test_one_edit_takes_further_passes_until_it_holds() -> None:
    few, more = editor(passes=2, margin=1.0), editor(passes=2, margin=1.0, small_turns=True)
    reports = [one.apply(requests(1), measure=False)[0] for one in (few, more)]
    assert len(reports[0].num_pending_rows) == 2
    assert reports[0].num_pending_rows[-1] > 0
    assert 2 < len(reports[1].num_pending_rows) <= 20
    assert reports[1].num_pending_rows[-1] == 0


def test_no_further_pass_moves_the_weights_further_than_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    solve = TurnSolver.solve

    def far(self: TurnSolver, rows: TurnRows, pending: Any = None) -> Solution:
        return solve(self, rows, pending).scaled(1.0 if pending is None else 100.0)

    monkeypatch.setattr(TurnSolver, "solve", far)
    lengths: dict[bool, list[float]] = {False: [], True: []}
    for small_turns, moves in lengths.items():
        one = editor(passes=2, small_turns=small_turns)
        add = one.weights.add
        monkeypatch.setattr(one.weights, "add", lambda shifts, to=moves, add=add: to.append(length(shifts)) or add(shifts))
        one.apply(requests(), measure=False)
    assert lengths[False][1] > 2 * lengths[False][0]
    assert lengths[True][1] == pytest.approx(lengths[True][0], rel=1e-5)


def length(shifts: dict[str, Shift]) -> float:
    return float(torch.stack([shift.dense().norm() for shift in shifts.values()]).norm())


def observed(one: Editor, edits: list[EditRequest]) -> LifelongStatistics:
    one.apply(edits, measure=False)
    return one.lifelong


def same(one: LifelongStatistics, other: LifelongStatistics) -> bool:
    moments = all(torch.equal(m.mean, other.moments[shape].mean) for shape, m in one.moments.items())
    return moments and all(ridge.count == other.preserved[name].count for name, ridge in one.preserved.items())
