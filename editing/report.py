"""The report of a turn: what it did, in numbers that are the same on every worker."""

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from editing.method.rows import TurnRows
from editing.method.solver import Solution
from editing.sharding.collectives import Collectives
from editing.turn import Turn, TurnReport


class PhaseClock:
    """Wall time of consecutive phases.

    Attributes:
        seconds: By phase.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """End a phase; the next one begins."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[phase], self._last = now - self._last, now


def make_report(
    turn: Turn,
    rows: TurnRows,
    total: Solution,
    growth: Mapping[str, float],
    collectives: Collectives,
    *,
    number: int,
    efficacy_after: float | None,
    num_pending_rows: list[int],
    seconds: Mapping[str, float],
    num_subjects: int | None,
    num_settled: int | None = None,
    rate: float | None = None,
) -> TurnReport:
    """Put a turn's report together. All workers call this; figures that each of them has measured are the first worker's.

    Args:
        turn: The turn.
        rows: Its rows as captured before the first shift.
        total: What all its passes have added.
        growth: By module, the growth of its weight.
        collectives: How the first worker's figures become everyone's.
        number: Turns applied, this one included.
        efficacy_after: Mean accuracy after the turn; ``None`` if it was not measured.
        num_pending_rows: Pending rows before each pass.
        seconds: Wall time by phase.
        num_subjects: Edits with a subject in their prompt; ``None`` if no module is edited at subjects.
        num_settled: Of these, edits whose residual has settled; ``None`` if no targets are solved.
        rate: The learning rate, where the first turn was to find one.
    """
    before = mean_accuracy(rows.correct, [len(s.answer_ids) for s in turn.sequences])
    conditions = {name: shift.condition for name, shift in total.shifts.items()}
    measured = [rows.losses.mean().item(), before, efficacy_after or 0.0, *conditions.values(), *seconds.values()]
    loss, before, after, *each = collectives.broadcast(torch.tensor(measured, dtype=torch.float64)).tolist()
    return TurnReport(
        turn=number,
        rate=rate,
        edits=len(turn.edits),
        rows=len(rows.losses),
        loss=loss,
        efficacy_before=before,
        efficacy_after=None if efficacy_after is None else after,
        shift_norms=total.norms,
        weight_growth=dict(growth),
        conditions=dict(zip(conditions, each, strict=False)),
        seconds=dict(zip(seconds, each[len(conditions) :], strict=True)),
        num_pending_rows=num_pending_rows,
        subjects=num_subjects,
        settled=num_settled,
    )


def mean_accuracy(correct: Tensor, lengths: Sequence[int]) -> float:
    """Share of correct rows of each sequence; the mean over the sequences.

    Args:
        correct: ``(n,)`` bool, sequence after sequence.
        lengths: Rows of each sequence.
    """
    shares = [rows.double().mean() for rows in correct.split(list(lengths))]
    return float(torch.stack(shares).mean())
