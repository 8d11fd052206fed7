"""The writer: the one process that changes weights. It forms turns, takes edits out, and does what it is asked for, one thing at a time.

    python -m orchestrator.service.writer     the configuration as one line of JSON on standard input; ends when that is closed

Each thing ends with a version in the database or with nothing. After an error the newest version is opened again, and what
waits in the database is tried again.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import insert, or_, select, update

from editing.errors import InputError, ModelError, UltraEditError, WorkerLost, first_line
from orchestrator.cli.console import complain, show_log
from orchestrator.cli.libraries import ready_libraries
from orchestrator.run.ledger import Ledger
from orchestrator.run.live import LiveRun, applied_ids
from orchestrator.run.run_config import RunConfig
from orchestrator.run.topology import make_worker
from orchestrator.service import jobs, versions
from orchestrator.service.admission import Admission
from orchestrator.service.attempts import DEATHS, Attempts
from orchestrator.service.config import ServeConfig
from orchestrator.service.database import Database, DiskFull, Unavailable, Work
from orchestrator.service.edits import EXPIRE, request_of, take_out
from orchestrator.service.folders import StateFolder
from orchestrator.service.foresight import foresee, problem_of
from orchestrator.service.gates import Gates
from orchestrator.service.head import ACTOR, Head, make_live, settle_all
from orchestrator.service.hooks import Deliverer, announce
from orchestrator.service.lease import Lease, LeaseLost
from orchestrator.service.probing import answer_probe, unanswered
from orchestrator.service.publisher import Publisher, PublishFailed
from orchestrator.service.rows import Row, all_rows, first_row
from orchestrator.service.states import CURRENT, WAITING, Conflict
from orchestrator.service.tables import edits, publications
from orchestrator.tracking import make_tracker

logger = logging.getLogger("ultraedit")

_IDLE_SECONDS = 0.2
_AFTER_ERROR_SECONDS = 2.0
_VALIDATED_AT_ONCE = 500
_EXIT_LOST, _EXIT_INPUT = 3, 2


class Writer:
    """Does what waits in the database.

    Args:
        config: The service's configuration.
        should_stop: Whether it was told to stop.
    """

    def __init__(self, config: ServeConfig, should_stop: Callable[[], bool]) -> None:
        self._config, self._should_stop = config, should_stop
        self._folder = StateFolder(config.state)
        self._database = Database(config.database_url)
        self._lease = Lease(self._database)
        self._run_config = RunConfig.build(config.run_options())

    def run(self) -> None:
        """Wait for the lease, then work until told to stop.

        Raises:
            LeaseLost: Another writer has taken over.
            UltraEditError: The model cannot be loaded, or is not the one that the service began with.
        """
        if not self._lease.acquire(self._should_stop):
            return
        deliverer = Deliverer(self._database, to_private=self._config.webhooks_to_private)
        try:
            while not self._should_stop():
                self._load_and_work()
        finally:
            deliverer.stop()
            with suppress(Unavailable):  # the next writer then waits until this one is silent for long enough
                self._lease.release()

    def _load_and_work(self) -> None:
        """Load the model and work, until a worker is lost or it is told to stop."""
        config = self._run_config
        self._lease.doing = "loading the model"
        self._live = LiveRun(config, make_worker(config), make_tracker(config.tracking_uri, config.experiment))
        try:
            self._live.load()
            self._head = Head(self._database, self._folder, self._lease, self._live)
            self._admission = Admission(self._config, self._head, Gates(self._live, self._config.gates))
            self._publisher = Publisher(self._folder, self._live)
            self._attempts = Attempts(self._database)
            self._retrying(lambda: self._head.open(keep=self._config.keep_versions))
            logger.info("writer    ready at version %d", self._head.row["number"])
            while not self._should_stop():
                if not self._retrying(self.step):
                    self._lease.doing = ""
                    time.sleep(_IDLE_SECONDS)
        except WorkerLost as error:
            logger.warning("lost      %s; starting all workers again", error)
        finally:
            self._live.close()

    def _retrying(self, do: Callable[[], Any]) -> Any:
        """Do something; after an error that may pass, go back to the newest version and say so."""
        try:
            return do()
        except (LeaseLost, WorkerLost, ModelError):
            raise
        except (UltraEditError, OSError) as error:
            logger.error("writer    %s; trying again", first_line(error))
            self._lease.doing = f"waiting after an error: {first_line(error)}"
            self._pause(_AFTER_ERROR_SECONDS)
            while not self._should_stop():
                try:
                    self._head.open(keep=self._config.keep_versions)
                    return True
                except (Unavailable, DiskFull, OSError) as again:
                    logger.error("writer    %s; trying again", first_line(again))
                    self._pause(_AFTER_ERROR_SECONDS)
            return True

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._should_stop():
            time.sleep(_IDLE_SECONDS)

    def step(self) -> bool:
        """Do one thing, the most urgent first. Returns whether there was any."""
        return any(do() for do in (self._validate, self._answer_probes, self._expire, self._take_out, self._do_job, self._publish_newest, self._turn))

    def _validate(self) -> bool:
        """Check edits that have come against the model: an edit that cannot be tokenized is rejected."""
        with self._database.reading() as connection:
            query = select(edits).where(edits.c.state == "queued").order_by(edits.c.seq).limit(_VALIDATED_AT_ONCE)
            rows = all_rows(connection, query)
        if not rows:
            return False
        problems = {row["id"]: problem_of(self._head, row) for row in rows}  # before the change begins: others wait for its end
        with self._changing("validate") as work:
            still = set(
                work.connection.execute(select(edits.c.id).where(edits.c.id.in_([r["id"] for r in rows]), edits.c.state == "queued")).scalars()
            )
            for row in rows:
                if row["id"] not in still:
                    continue
                if (problem := problems[row["id"]]) is not None:
                    work.change(row, "rejected", problem)
                else:
                    work.change(row, "validated", "the model can be asked for it")
        return True

    def _answer_probes(self) -> bool:
        with self._database.reading() as connection:
            rows = unanswered(connection)
        if not rows:
            return False
        texts = self._live.worker.write([row["prompt"] for row in rows], unedited=True, max_new_tokens=6)
        with self._database.bookkeeping() as connection:
            for row, written in zip(rows, texts, strict=True):
                answer_probe(connection, row["id"], written.text.strip() or written.text or ".")
        return True

    def _expire(self) -> bool:
        with self._database.reading() as connection:
            query = select(edits).where(
                edits.c.expires <= time.time(), edits.c.state.in_((*WAITING, *CURRENT, "superseded")), edits.c.pending.is_(None)
            )
            rows = all_rows(connection, query.order_by(edits.c.seq).limit(_VALIDATED_AT_ONCE))
        if not rows:
            return False
        with self._changing("expire") as work:
            for row in rows:
                take_out(work, row, EXPIRE, "its time is over")
        return True

    def _take_out(self) -> bool:
        """Take out all edits that are to be taken out, in one replay."""
        with self._database.reading() as connection:
            rows = all_rows(connection, select(edits).where(edits.c.pending.is_not(None)).order_by(edits.c.seq))
        if not rows:
            return False
        began = time.perf_counter()
        self._lease.doing = f"taking out {len(rows)} edits"
        ledger, gone = self._head.ledger(), {row["id"] for row in rows}
        first = min((entry.turn for entry in ledger if entry.id in gone), default=None)
        if first is None:
            self._close_pending(rows)
            return True
        start = self._start_before(first)
        self._head.go_to(start)
        self._live.replay(ledger, gone)
        self._commit_removal(rows, start, began)
        return True

    def _start_before(self, turn: int) -> Row:
        """The newest version before a turn whose weights are kept, and whose ledger the newest version's begins with."""
        with self._database.reading() as connection:
            for row in versions.lineage(connection, self._head.row["number"]):
                if row["turn"] < turn and self._folder.has_state(row["number"]):
                    return row
        raise ModelError(f"{self._folder.path}: the weights of the unedited model are gone; put the folder versions/000000 back")

    def _commit_removal(self, rows: Sequence[Row], start: Row, began: float) -> None:
        measured = self._measured(rows)
        live = self._follows_live()
        checkpoint = self._live.keep()
        entries = list(self._live.journal.ledger)

        def settle(work: Work, number: int) -> None:
            for row in rows:
                after = "removed" if row["pending"] != EXPIRE else "expired"
                work.change(row, after, row["reason"], data=measured[row["id"]], pending=None, figures=measured[row["id"]])  # type: ignore[arg-type]
                announce(work, f"edit.{after}", {"edit": row["id"], "version": number, **measured[row["id"]]})
            settle_all(work, entries, live, "quarantined", "it is not in the version that followed a removal")
            if live:
                make_live(work, work.connection, number, f"version {number} is live")

        figures = {"removed": len(rows), "efficacy_of_removed": sum(m["efficacy"] for m in measured.values()) / len(rows)}
        number = self._head.commit(checkpoint, "removal", figures, settle, began=began, num_edits=len(rows), parent=start["number"])
        logger.info("version   %d: %d edits were taken out", number, len(rows))
        self._head.clean(self._config.keep_versions)

    def _follows_live(self) -> bool:
        """Whether the next version is live at once: always, or at least where the newest one is."""
        with self._database.reading() as connection:
            newest = versions.live(connection) == self._head.row["number"]
        return self._config.publish is None and (self._config.auto_publish or newest)

    def _measured(self, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """What the model says now of facts that were taken out."""
        worker, tokenizer = self._live.worker, self._live.tokenizer
        found: dict[str, dict[str, Any]] = {}
        for a in range(0, len(rows), worker.edits_at_a_time):
            some = rows[a : a + worker.edits_at_a_time]
            results, _ = worker.evaluate([tokenizer.tokenize(request_of(row), 0) for row in some])
            texts = worker.write([request_of(row).asked for row in some])
            for row, result, written in zip(some, results, texts, strict=True):
                found[row["id"]] = {"efficacy": result.efficacy, "efficacy_unedited": result.efficacy_before, "text_after": written.text}
        return found

    def _close_pending(self, rows: Sequence[Row]) -> None:
        """Edits that are not in the weights after all."""
        with self._changing("remove") as work:
            for row in rows:
                work.change(row, "removed" if row["pending"] != EXPIRE else "expired", row["reason"], pending=None)

    def _do_job(self) -> bool:
        with self._database.reading() as connection:
            job = jobs.next_job(connection)
        if job is None:
            return False
        self._lease.doing = job["kind"]
        do = {"dry-run": self._dry_run, "rollback": self._roll_back, "publish": self._publish, "promote": self._promote, "drop": self._drop}
        try:
            state, result = jobs.DONE, do[job["kind"]](job)
        except (InputError, PublishFailed) as error:
            self._head.back()
            state, result = jobs.FAILED, {"reason": str(error)}
        except (RuntimeError, ValueError, LookupError, TypeError) as error:  # the job must not be tried again and again
            self._finish(job, jobs.FAILED, {"reason": f"unexpected {type(error).__name__}; the writer's log has more"})
            raise
        self._finish(job, state, result)
        return True

    def _finish(self, job: Row, state: str, result: Mapping[str, Any]) -> None:
        with self._database.bookkeeping() as connection:
            jobs.finish(connection, job["id"], state, result, time.time())

    def _dry_run(self, job: Row) -> dict[str, Any]:
        result = foresee(self._database, self._head, self._admission, job["arguments"]["edits"])
        self._live.undo()
        return result

    def _roll_back(self, job: Row) -> dict[str, Any]:
        """A new version that is an older one again, less what was withdrawn since."""
        began, wanted = time.perf_counter(), int(job["arguments"]["version"])
        with self._database.reading() as connection:
            row = versions.get(connection, wanted)
            gone = set(connection.execute(select(edits.c.id).where(edits.c.state.in_(("removed", "expired")))).scalars())
        if not self._folder.has_state(wanted):
            raise Conflict(f"version: the weights of version {wanted} are no longer kept; choose a newer one")
        self._head.go_to(row)
        withdrawn = applied_ids(self._live.journal.ledger) & gone
        checkpoint, start = self._live.keep(), row
        if withdrawn:
            ledger = self._ledger_of(row)
            start = self._start_of(row, min(entry.turn for entry in ledger if entry.id in withdrawn))
            self._head.go_to(start)
            self._live.replay(ledger, withdrawn)
            checkpoint = self._live.keep()
        entries = list(self._live.journal.ledger)
        reason = f"rolled back to version {wanted} by {job['actor']}" + (f": {job['arguments']['reason']}" if job["arguments"].get("reason") else "")

        def settle(work: Work, number: int) -> None:
            work.actor = job["actor"]
            settle_all(work, entries, True, "quarantined", reason)
            make_live(work, work.connection, number, reason)
            announce(work, "version.rolled_back", {"version": number, "of": wanted, "actor": job["actor"]})

        figures = {"withdrawn_since": len(withdrawn)}
        columns = {"parent": start["number"], "of": wanted, "num_edits": self._head.row["total_edits"] - len(applied_ids(self._live.journal.ledger))}
        number = self._head.commit(checkpoint, "rollback", figures, settle, began=began, **columns)
        logger.info("version   %d: rolled back to version %d", number, wanted)
        return {"version": number, "of": wanted, "withdrawn_since": sorted(withdrawn)}

    def _ledger_of(self, row: Row) -> Ledger:
        return Ledger.first_parts(self._folder.run(row["run"]) / "ledger", self._folder.manifest(row["number"])["num_ledger_parts"])

    def _start_of(self, row: Row, turn: int) -> Row:
        with self._database.reading() as connection:
            return next(r for r in versions.lineage(connection, row["number"]) if r["turn"] < turn and self._folder.has_state(r["number"]))

    def _publish_newest(self) -> bool:
        """Bring the newest version into the engine, where versions are live by themselves."""
        target = self._config.publish
        if target is None or not self._config.auto_publish:
            return False
        with self._database.reading() as connection:
            number = versions.live(connection)
            failed = versions.setting(connection, "publish_failed")
        newest = self._head.row["number"]
        if number == newest or failed == newest:
            return False
        try:
            self._bring(newest, target, self._config.publish_name, canary=False, actor=ACTOR)
        except (PublishFailed, InputError) as error:
            logger.error("publish   version %d: %s", newest, error)
            with self._changing("publish", f"version {newest}") as work:
                versions.set_setting(work.connection, "publish_failed", newest)
                announce(work, "publish.failed", {"version": newest, "reason": str(error)})
        return True

    def _publish(self, job: Row) -> dict[str, Any]:
        asked = job["arguments"]
        target = asked.get("to") or self._config.publish
        canary, number = bool(asked.get("canary")), int(asked["version"])
        if target is None and canary:
            raise Conflict("publish: a canary needs an engine; give its address as 'to', or start the service with --publish")
        if target is None:
            with self._database.reading() as connection:
                versions.get(connection, number)
            with self._database.changing(job["actor"], "publish", f"version {number}") as work:
                self._lease.check(work.connection)
                make_live(work, work.connection, number, f"version {number} was published by {job['actor']}")
                announce(work, "version.live", {"version": number})
            return {"version": number, "live": True}
        name = asked.get("name") or self._config.publish_name + ("-canary" if canary else "")
        return self._bring(number, target, name, canary=canary, actor=job["actor"])

    def _bring(self, number: int, target: str, name: str, *, canary: bool, actor: str) -> dict[str, Any]:
        self._lease.doing = f"publishing version {number}"
        with self._database.reading() as connection:
            row = versions.get(connection, number)
        if not row["total_edits"]:
            raise Conflict(f"publish: version {number} is the unedited model, and has nothing to publish")
        found = self._publisher.publish(row, target, name)
        with self._database.changing(actor, "publish", f"version {number}") as work:
            self._lease.check(work.connection)
            same = update(publications).where(publications.c.target == target, publications.c.name == name, publications.c.state == "live")
            work.connection.execute(same.values(state="replaced"))
            values = {"version": number, "target": target, "name": name, "canary": canary, "number": found.number, "state": "live"}
            work.connection.execute(insert(publications).values(**values, reason="", verdict=found.verdict, at=work.now, actor=actor))
            work.note(version=number, to=target, name=name, canary=canary)
            if not canary:
                make_live(work, work.connection, number, f"version {number} is live as {name}")
                announce(work, "version.live", {"version": number, "name": name})
        return {"version": number, "name": name, "canary": canary, "verdict": found.verdict}

    def _canary(self, number: int) -> Row:
        with self._database.reading() as connection:
            query = select(publications).where(publications.c.version == number, publications.c.canary, publications.c.state == "live")
            row = first_row(connection, query.order_by(publications.c.seq.desc()).limit(1))
        if row is None:
            raise Conflict(f"version: {number} is no canary; publish it first with canary: true")
        return row

    def _promote(self, job: Row) -> dict[str, Any]:
        """A canary takes the place of what is live."""
        canary = self._canary(int(job["arguments"]["version"]))
        result = self._bring(canary["version"], canary["target"], self._config.publish_name, canary=False, actor=job["actor"])
        self._drop(job)
        return result

    def _drop(self, job: Row) -> dict[str, Any]:
        canary = self._canary(int(job["arguments"]["version"]))
        self._publisher.take_back(canary["number"])
        with self._database.changing(job["actor"], "drop", f"version {canary['version']}") as work:
            work.connection.execute(update(publications).where(publications.c.seq == canary["seq"]).values(state="dropped", at=work.now))
            work.note(version=canary["version"], name=canary["name"])
        return {"version": canary["version"], "dropped": canary["name"]}

    def _turn(self) -> bool:
        """Write the edits that wait, if they are enough or have waited long enough."""
        rows, deadly = self._attempts.choose(self._due())
        if deadly:
            self._admission.set_aside(deadly, f"{DEATHS} writers in a row died while they wrote it; their logs may say why")
            self._attempts.forget()
            return True
        if not rows:
            return False
        self._lease.doing = f"writing a turn of {len(rows)} edits"
        with self._attempts.noted(rows):
            self._admission.admit(rows)
        self._head.clean(self._config.keep_versions)
        return True

    def _due(self) -> list[Row]:
        """The edits of the next turn: the oldest that may be written now, one of each prompt."""
        now, ready = time.time(), ("approved",) if self._config.require_approval else ("approved", "validated")
        query = select(edits).where(edits.c.state.in_(ready), edits.c.pending.is_(None), or_(edits.c.valid_from.is_(None), edits.c.valid_from <= now))
        with self._database.reading() as connection:
            rows = all_rows(connection, query.order_by(edits.c.seq).limit(2 * self._config.turn_edits))
        oldest = min((max(row["created"], row["valid_from"] or 0.0) for row in rows), default=now)
        if len(rows) < self._config.turn_edits and now - oldest < self._config.turn_seconds:
            return []
        first: dict[str, Row] = {}
        for row in rows:  # a second edit of a prompt waits for the next turn, and overrules the first one there
            first.setdefault(row["prompt_key"], row)
        return list(first.values())[: self._config.turn_edits]

    def _changing(self, action: str, subject: str = "") -> Any:
        return _checked(self._database, self._lease, action, subject)


class _checked:  # a context manager, used as a function
    """A change by the holder of the lease."""

    def __init__(self, database: Database, lease: Lease, action: str, subject: str) -> None:
        self._context, self._lease = database.changing(ACTOR, action, subject), lease

    def __enter__(self) -> Work:
        work = self._context.__enter__()
        try:
            self._lease.check(work.connection)
        except BaseException as error:
            self._context.__exit__(type(error), error, error.__traceback__)
            raise
        return work

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


def main() -> int:
    """Run a writer with the configuration on standard input. Returns the exit code."""
    show_log()
    config = ServeConfig.build(json.loads(sys.stdin.readline()))
    stop = threading.Event()
    threading.Thread(target=_wait_for_end, args=(stop,), name="parent", daemon=True).start()
    _be_modest(config)
    try:
        Writer(config, stop.is_set).run()
    except LeaseLost as error:
        complain(f"writer: {error}")
        return _EXIT_LOST
    except UltraEditError as error:
        complain(f"error: {error}")
        return _EXIT_INPUT if isinstance(error, (InputError, ModelError)) else 1
    return 0


def _be_modest(config: ServeConfig) -> None:
    """Leave the API its share of the machine: reads are to be answered while a turn runs."""
    with suppress(OSError):  # where a process may not be made less urgent
        os.nice(10)
    ready_libraries()
    import torch

    torch.set_num_threads(config.writer_threads or max(1, (os.cpu_count() or 2) - 1))


def _wait_for_end(stop: threading.Event) -> None:
    """Stop when whoever started this process is gone."""
    sys.stdin.read()
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
