"""A turn of edits through its gates: kept whole, or cut in halves until it is known which edits failed.

    edits --> try --> gates --> kept: the next version
               ^        `-----> undone; of one edit: set aside with the figure; else both halves, the first one first
               `------------------------------------------------'

The second half is tried on top of what was kept of the first, so that edits that fail only together are found as well.
"""

import logging
import time
from collections.abc import Mapping, Sequence

from sqlalchemy import insert

from editing import EditRequest
from editing.errors import OutOfMemory, first_line
from orchestrator.run.live import Tried
from orchestrator.service import versions
from orchestrator.service.config import ServeConfig
from orchestrator.service.database import Work
from orchestrator.service.edits import request_of, rivals
from orchestrator.service.gates import Before, Gates, Verdict
from orchestrator.service.head import ACTOR, Head
from orchestrator.service.hooks import announce
from orchestrator.service.probing import Probe, extra_probes, mark_probes, standing_probes
from orchestrator.service.rows import Row
from orchestrator.service.states import CURRENT
from orchestrator.service.tables import gate_failures
from orchestrator.wording import counted

logger = logging.getLogger("ultraedit")

_SHOWN_TEXTS = 16
"""Edits of a version for which text is written down, before and after."""


class Admission:
    """Brings edits into the weights, as far as the gates let them.

    Args:
        config: The service's configuration.
        head: The newest version.
        gates: What a turn is measured by.
    """

    def __init__(self, config: ServeConfig, head: Head, gates: Gates) -> None:
        self._config, self._head, self._gates = config, head, gates

    def admit(self, rows: Sequence[Row]) -> None:
        """Write edits in one turn, or in several where the gates say so. All of them have another state afterwards.

        Raises:
            UltraEditError: It could not be done now. What was committed before stays; the others are as they were.
        """
        began = time.perf_counter()
        requests = [request_of(row) for row in rows]
        verdict = self.try_out(requests, rows)
        if verdict.passed:
            self._keep(rows, verdict, began)
            return
        self._head.run.undo()
        self._note_failure(rows, verdict)
        if len(rows) == 1:
            self._set_aside(rows, verdict)
            return
        weak = self._weak(rows, verdict)
        if weak and len(weak) < len(rows):
            self._set_aside(weak, verdict, by_own_efficacy=dict(zip([row["id"] for row in rows], verdict.efficacy, strict=True)))
            self.admit([row for row in rows if row not in weak])
            return
        middle = len(rows) // 2
        self.admit(rows[:middle])
        self.admit(rows[middle:])

    def try_out(self, requests: Sequence[EditRequest], rows: Sequence[Row]) -> Verdict:
        """Apply a turn and judge it. It is to be kept or undone."""
        before = self._before(rows)
        try:
            tried = self._head.run.try_turn(requests)
        except OutOfMemory as error:
            tried = Tried(None, None, refused=str(error))
        except (RuntimeError, ValueError) as error:  # of a library, for edits that nobody foresaw: the others are not to wait behind them for ever
            logger.error("writer    a turn failed in a way that was not foreseen", exc_info=error)
            tried = Tried(None, None, refused=f"unexpected {type(error).__name__}: {first_line(error)}")
        return self._gates.judge(requests, tried, before)

    def _before(self, rows: Sequence[Row]) -> Before:
        overruled = self._overruled_by(rows)
        with self._head.database.reading() as connection:
            probes: list[Probe] = standing_probes(connection)
        return self._gates.before(self._head.current_requests(but=overruled), [*probes, *extra_probes(rows)])

    def _overruled_by(self, rows: Sequence[Row]) -> set[str]:
        """Edits that these are meant to overrule: that they are forgotten is no harm."""
        with self._head.database.reading() as connection:
            return {rival["id"] for row in rows for rival in rivals(connection, row["prompt_key"], CURRENT, row["id"])}

    def _weak(self, rows: Sequence[Row], verdict: Verdict) -> list[Row]:
        """Where the edits themselves do not hold: those that do not."""
        if verdict.gate != "efficacy":
            return []
        limit = self._config.gates.edit_efficacy
        return [row for row, efficacy in zip(rows, verdict.efficacy, strict=True) if efficacy < limit]

    def _keep(self, rows: Sequence[Row], verdict: Verdict, began: float) -> None:
        texts = self._texts(rows)
        checkpoint = self._head.run.keep()
        live = self._config.auto_publish and self._config.publish is None
        own = dict(zip([row["id"] for row in rows], verdict.efficacy, strict=True))

        def settle(work: Work, number: int) -> None:
            for row in rows:
                figures = {"efficacy": own[row["id"]], **texts.get(row["id"], {})}
                work.change(row, "applied", f"in a turn of {len(rows)}", version=number)
                work.change({**row, "state": "applied"}, "verified", "its turn passed the gates", data=figures, figures=figures)
                for rival in rivals(work.connection, row["prompt_key"], CURRENT, row["id"]):
                    if rival["target"].strip() != row["target"].strip():
                        work.change(rival, "superseded", f"overruled by {row['id']}")
            if live:
                for row in rows:
                    work.change({**row, "state": "verified"}, "live", f"version {number} is live")
                versions.set_setting(work.connection, versions.LIVE, number)
                announce(work, "version.live", {"version": number, "edits": [row["id"] for row in rows]})
            mark_probes(work.connection, verdict.lost)

        number = self._head.commit(checkpoint, "turn", verdict.figures, settle, began=began, num_edits=len(rows))
        logger.info("version   %d: %d edits, efficacy %.2f", number, len(rows), verdict.figures["efficacy"])

    def _texts(self, rows: Sequence[Row]) -> dict[str, dict[str, str]]:
        """What the model writes after the first prompts, before the first edit and now."""
        shown = rows[:_SHOWN_TEXTS]
        prompts = [request_of(row).asked for row in shown]
        before, after = (self._head.run.worker.write(prompts, unedited=unedited) for unedited in (True, False))
        return {row["id"]: {"text_before": b.text, "text_after": a.text} for row, b, a in zip(shown, before, after, strict=True)}

    def _note_failure(self, rows: Sequence[Row], verdict: Verdict) -> None:
        logger.warning("gate      a turn of %s is undone: %s: %s", counted(len(rows), "edit"), verdict.gate, verdict.reason)
        number = self._head.row["number"]
        with self._head.database.changing(ACTOR, "gate", f"after version {number}") as work:
            self._head.lease.check(work.connection)
            row = {"at": work.now, "version": number, "num_edits": len(rows), "gate": verdict.gate, "reason": verdict.reason}
            work.connection.execute(insert(gate_failures).values(**row, gates=dict(verdict.figures)))
            work.note(gate=verdict.gate, reason=verdict.reason, edits=[row["id"] for row in rows])

    def set_aside(self, rows: Sequence[Row], reason: str) -> None:
        """Quarantine edits that no gate has seen."""
        with self._head.database.changing(ACTOR, "quarantined", rows[0]["id"]) as work:
            self._head.lease.check(work.connection)
            for row in rows:
                work.change(row, "quarantined", reason)
            announce(work, "edit.quarantined", {"edits": [row["id"] for row in rows], "reason": reason})

    def _set_aside(self, rows: Sequence[Row], verdict: Verdict, by_own_efficacy: Mapping[str, float] | None = None) -> None:
        after = "failed" if verdict.gate == "refused" else "quarantined"
        with self._head.database.changing(ACTOR, after, rows[0]["id"]) as work:
            self._head.lease.check(work.connection)
            for row in rows:
                reason, figures = f"{verdict.gate}: {verdict.reason}", dict(verdict.figures)
                if by_own_efficacy is not None:
                    figures["efficacy"] = by_own_efficacy[row["id"]]
                    reason = f"efficacy: its own is {figures['efficacy']:.2f} (limit {self._config.gates.edit_efficacy:g})"
                work.change(row, after, reason, data=figures, figures=figures)  # type: ignore[arg-type]
            announce(work, f"edit.{after}", {"edits": [row["id"] for row in rows], "gate": verdict.gate, "reason": verdict.reason})
