"""A report says what a turn did, with the same figures on every worker."""

import time

import pytest
import torch

from editing.method.rows import TurnRows
from editing.method.shift import Shift
from editing.method.solver import Solution
from editing.model.tokenization import AnswerSequence
from editing.report import PhaseClock, make_report, mean_accuracy
from editing.requests import EditRequest
from editing.sharding.collectives import SingleWorker
from editing.turn import TokenizedEdit, Turn, TurnReport
from tests.support.emulated_workers import EmulatedWorker, run_workers

TURN = Turn.of([TokenizedEdit(EditRequest("p", "t"), AnswerSequence(tuple(range(9 - n)), tuple(range(n)))) for n in (1, 2, 3)])
SHIFT = Shift(torch.ones(2, 1), torch.ones(1, 3), condition=40.0)


def report(worker: EmulatedWorker | None = None, *, efficacy_after: float | None = 0.75) -> TurnReport:
    rank = worker.rank if worker else 0
    rows = TurnRows.empty({}, {}, {"answer": 6, "subject": 0})
    rows.losses[:] = torch.arange(6) + rank
    rows.correct[:] = torch.tensor([True, False, True, True, True, False])  # of edits with 1, 2 and 3 rows
    return make_report(
        TURN,
        rows,
        Solution({"a": SHIFT, "b": SHIFT}, {"a": 2.0, "b": 3.0}),
        {"a": 0.5, "b": 0.25},
        worker or SingleWorker(),
        number=4,
        efficacy_after=efficacy_after,
        num_pending_rows=[6, 2],
        seconds={"prefix": 1.0 + rank, "solve": 2.0},
        num_subjects=None,
    )


def test_it_holds_what_was_measured() -> None:
    found = report()
    assert (found.turn, found.edits, found.rows, found.loss) == (4, 3, 6, 2.5)
    assert found.efficacy_before == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)
    assert found.efficacy_after == 0.75
    assert (found.shift_norms, found.weight_growth) == ({"a": 2.0, "b": 3.0}, {"a": 0.5, "b": 0.25})
    assert found.conditions == {"a": 40.0, "b": 40.0}
    assert found.seconds == {"prefix": 1.0, "solve": 2.0}
    assert found.num_pending_rows == [6, 2]


def test_what_was_not_measured_is_none() -> None:
    assert report(efficacy_after=None).efficacy_after is None


def test_all_workers_report_the_first_ones_figures() -> None:
    first, second = run_workers(report, num_replicas=2)
    assert first == second == report()


def test_accuracy_is_a_mean_over_sequences_not_over_rows() -> None:
    assert mean_accuracy(torch.tensor([True, False, False, False]), [1, 3]) == 0.5


def test_a_clock_measures_each_phase_from_the_end_of_the_last() -> None:
    clock = PhaseClock()
    time.sleep(0.02)
    clock.lap("slow")
    clock.lap("quick")
    assert list(clock.seconds) == ["slow", "quick"]
    assert clock.seconds["slow"] >= 0.02 > clock.seconds["quick"]
