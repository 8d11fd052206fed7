"""Writes down what a run does.

Every turn goes into the ledger, ``turns.jsonl``, the index of prompts and the tracker; what is not applied also into ``rejected.jsonl``.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from editing.errors import TurnRefused
from editing.monitoring.health import Vitals
from editing.turn import TokenizedEdit, Turn, TurnReport
from orchestrator.digest import InputDigest
from orchestrator.rejected import RejectedRecords
from orchestrator.run.checkpoint import Checkpoint
from orchestrator.run.conflicts import Conflict
from orchestrator.run.governor import Governor
from orchestrator.run.journal import Journal
from orchestrator.run.ledger import APPLIED, ROLLED_BACK
from orchestrator.run.timing import timed
from orchestrator.run.windows import Window
from orchestrator.tracking import Tracker
from workers.protocol import Worker

logger = logging.getLogger("ultraedit")

_MAX_SHOWN_CONFLICTS = 10
"""Conflicts that are shown one by one; the rest is in the run's files."""


class TurnRecorder:
    """Keeps a run's books.

    Args:
        journal: The run's files and state.
        tracker: Where the run is followed.
        digest: SHA-256 of a new input, which is being computed.

    Attributes:
        journal: The run's files and state.
    """

    def __init__(self, journal: Journal, tracker: Tracker, digest: InputDigest | None = None) -> None:
        self.journal, self._tracker, self._digest = journal, tracker, digest
        self._state, self._rejected = journal.state, RejectedRecords(journal.rejected)

    def begin_window(self, window: Window) -> None:
        """Take over a window's cursor, and write down the records and edits that it leaves out."""
        for bad in window.bad:
            logger.warning("record %d set aside: %s", bad.number, bad.reason)
            self._rejected.add_record(bad)
        self._state.num_records_rejected += len(window.bad)
        for entry in window.removed:
            self._rejected.add_edit(entry.record, entry.request, "removed on request", edit_id=entry.id)
        window.cursor.store(self._state)

    def end_window(self, window: Window) -> None:
        """Keep what a replay undoes in the ledger."""
        self.journal.ledger.keep_rolled_back(window.rolled_back)

    def begin_turn(self, turn: Turn) -> None:
        """Count a turn and the edits that it was asked for."""
        self._state.num_turns += 1
        self._state.num_requested_edits += len(turn.edits) + len(turn.superseded)

    def add_applied(self, turn: Turn, report: TurnReport, vitals: Vitals | None) -> None:
        """Write down a turn that was applied, and the model's health after it if it was measured."""
        state = self._state
        self._count(report)
        if report.strength is not None:
            again = f", at 1/{2**report.halvings} of the strength: above it too few of the fixed probes kept their answer" if report.halvings else ""
            logger.info("turn %d has found the learning rate %.3g, strength %.3g%s", state.num_turns, report.rate, report.strength, again)
        state.num_edits_otherwise_tokenized += sum(not edit.sequence.whole for edit in turn.edits)
        self._tracker.log(_metrics(report, vitals), step=state.num_edits_applied)
        row = {**asdict(report), "turn": state.num_turns, "total_edits": state.num_edits_applied, "vitals": vitals.as_dict() if vitals else None}
        self._add(turn, APPLIED, row)

    def add_refused(self, turn: Turn, error: TurnRefused) -> None:
        """Write down a turn that was refused, with its edits among the rejected ones."""
        state, edits = self._state, turn.in_request_order
        prompts = ", ".join(repr(edits[i].request.prompt) for i in error.culprits[:5])
        cause = f"{error}; caused by {prompts}" if prompts else str(error)
        logger.error("turn %d was refused, its %d edits are not applied: %s", state.num_turns, len(edits), cause)
        state.num_edits_refused += len(edits)
        self._reject(edits, f"turn {state.num_turns} was refused: {cause}")
        self._add(turn, f"refused: {error}", {"turn": state.num_turns, "refused": str(error)})

    def add_not_applied(self, turns: Sequence[Turn], reason: str) -> None:
        """Write down turns of the window that come after the one at which the run stops."""
        for number, turn in enumerate(turns, start=self._state.num_turns + 1):
            self._add_to_ledger(turn, number, ROLLED_BACK)
            self._reject(turn.in_request_order, f"not applied: the run {reason}")

    def add_milestone(self, metrics: dict[str, float | None]) -> None:
        """Write down the metrics of the edits so far."""
        state = self._state
        state.milestones.append({"edits": state.num_edits_applied, **metrics})
        self._tracker.log({f"eval_{name}": value for name, value in metrics.items()}, step=state.num_edits_applied)

    def write_checkpoint(self, worker: Worker, governor: Governor) -> Checkpoint:
        """Write the whole state of the run and its model. The first checkpoint of a new input waits for its SHA-256."""
        state = self._state
        with timed(state.seconds, "checkpoint"):
            if state.source["sha256"] is None and self._digest is not None:
                state.source["sha256"] = self._digest.result()
                self._tracker.params({"input_sha256": state.source["sha256"]})
            state.limits_passed, state.last_healthy_turn = governor.limits_passed, governor.healthy_turn
            state.watch_state = worker.watch_state()
            state.mlflow_run_id = self._tracker.run_id(wait=False) or state.mlflow_run_id
            return self.journal.checkpoint(worker.save_state)

    def explain_nothing_applied(self) -> str:
        """Why a run has applied no edit, in one line."""
        state, reason = self._state, self._rejected.last_reason()
        because = f"; the last one because {reason}" if reason else ""
        return f"no edit was applied: {state.num_records_rejected} records were rejected, {state.num_edits_refused} edits refused{because}"

    def _add(self, turn: Turn, outcome: str, row: dict[str, Any]) -> None:
        state = self._state
        conflicts = self.journal.prompts.add_turn(turn, state.num_turns, applied=outcome == APPLIED)
        self._show_conflicts(conflicts)
        state.num_conflicts += len(conflicts)
        self._add_to_ledger(turn, state.num_turns, outcome)
        self.journal.turns.add({**row, "conflicts": [conflict.as_dict() for conflict in conflicts]})

    def _add_to_ledger(self, turn: Turn, number: int, outcome: str) -> None:
        state = self._state
        self.journal.ledger.add_turn(turn, source=state.num_sources, window=state.num_windows, turn_number=number, outcome=outcome)

    def _reject(self, edits: Iterable[TokenizedEdit], reason: str) -> None:
        for edit in edits:
            self._rejected.add_edit(edit.record, edit.request, reason)

    def _count(self, report: TurnReport) -> None:
        state = self._state
        state.num_edits_applied += report.edits
        state.num_turns_applied += 1
        if report.subjects is not None:
            state.num_edits_without_subject += report.edits - report.subjects
        for phase, seconds in report.seconds.items():
            if phase != "measure":
                state.seconds["capture" if phase == "prefix" else phase] += seconds

    def _show_conflicts(self, conflicts: Sequence[Conflict]) -> None:
        """Warn of conflicts as they come, the first ones of a run; all of them are in its files."""
        for number, conflict in enumerate(conflicts, start=self._state.num_conflicts + 1):
            if number <= _MAX_SHOWN_CONFLICTS:
                logger.warning("conflict: %s", conflict)
            elif number == _MAX_SHOWN_CONFLICTS + 1:
                logger.warning("conflict: more of them are in turns.jsonl")


def _metrics(report: TurnReport, vitals: Vitals | None) -> dict[str, float | None]:
    """What the tracker gets of a turn."""
    norms, growth, conditions = report.shift_norms, report.weight_growth, report.conditions
    return {
        "loss": report.loss,
        "efficacy_before": report.efficacy_before,
        **(vitals.as_dict() if vitals else {}),
        "shift_norm": sum(n * n for n in norms.values()) ** 0.5,
        "weight_growth": max(growth.values()),
        "condition": max(conditions.values()),
        **{f"pending_rows_{number}": rows for number, rows in enumerate(report.num_pending_rows, start=1)},
        **{f"shift_norm.{name}": value for name, value in norms.items()},
        **{f"weight_growth.{name}": value for name, value in growth.items()},
        **{f"condition.{name}": value for name, value in conditions.items()},
        **{f"turn_seconds_{phase}": seconds for phase, seconds in report.seconds.items() if phase != "measure"},
    }
