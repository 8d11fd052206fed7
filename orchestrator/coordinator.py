"""A run: edits in, an edited model and everything worth knowing about it out.

    edit file --intake--> windows of turns (the lookahead) --worker: prefix, once a window
                 |                                             |
                 v                                             v  a turn at a time
           rejected.jsonl                       worker: capture, solve, apply  ----> TurnReport --> tracker, turns.jsonl
                                                               |         |
                                                               |         `--> ledger, and every few turns a checkpoint
                                                               `-- watch: a sample of applied edits, every turn
    after the last turn:  save the model  ->  evaluate every edit of the ledger  ->  generate text for a sample  ->  report
    at the very end:      the whole folder is put in place in one rename

A run that is resumed, appended to, rolled back or freed of some edits is the same loop from another state over other
windows: see ``resume.py`` and ``replay.py``.
"""

import json
import logging
import platform
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from editing import TurnRefused, UltraEditError
from editing.datasets import BadRecord, EditFile
from editing.turn import PreparedTurn, TokenizedEdit, Turn, TurnReport, in_turns
from orchestrator.assessment import assess
from orchestrator.config import RunConfig
from orchestrator.digest import InputDigest
from orchestrator.intake import Intake, look_ahead
from orchestrator.journal import Journal, RunState
from orchestrator.ledger import APPLIED
from orchestrator.progress import Progress
from orchestrator.report import plot_run
from orchestrator.resume import describe_source, fresh_state, resumed_state
from orchestrator.rundir import RunDirectory
from orchestrator.tracking import Tracker
from workers.worker import Worker

logger = logging.getLogger("ultraedit")


@dataclass(frozen=True, slots=True)
class Window:
    """Turns that go through the frozen layers in one pass.

    Attributes:
        turns: The turns.
        apply: How many of them are applied; the others only keep the first ones' batches as they were.
    """

    turns: list[Turn]
    apply: int


class Coordinator:
    """Drives one worker through one run.

    Args:
        config: The run's configuration.
        worker: Where the model lives; not loaded yet.
        tracker: Where the run is followed.
        progress: Shows a person how far it is.
    """

    def __init__(self, config: RunConfig, worker: Worker, tracker: Tracker, progress: Progress) -> None:
        self.config, self.worker, self.tracker, self.progress = config, worker, tracker, progress
        self._began = time.perf_counter()
        self._load_seconds = 0.0
        self._digest: InputDigest | None = None

    def run(self, *, resume: bool = False) -> Path:
        """Edit the model with the configured file.

        Args:
            resume: Go on with an unfinished run, or append to a finished one, if there is one.

        Returns:
            The run's folder, complete.

        Raises:
            UltraEditError: The run cannot go on. What it had checkpointed can be resumed; else nothing was written.
        """
        config = self.config
        source = EditFile(config.edits, config.format)
        with (
            RunDirectory(Path(config.output), overwrite=config.overwrite or resume, resume=resume) as out,
            InputDigest(source.path, source.parts) as self._digest,
        ):
            total = look_ahead(source, config.limit)
            self.load(out)
            described = describe_source(source, config.limit)
            state, checkpoint = resumed_state(out, config, self.worker, described, self._digest) if resume else (None, None)
            if state is None:
                state = fresh_state(config, self.worker, described)
            elif state.input_done and not out.is_resumed:
                logger.info("complete  %s has all edits of %s; nothing to do", out.path, source.path)
                out.discard()
                return out.path
            elif checkpoint is not None:
                self.worker.load_state(checkpoint, state.watch)
                logger.info("resuming  after turn %d, %d edits applied", state.turn, state.edits)
            journal = Journal(out.staging, state, keep=config.keep)
            return self.drive(out, journal, self._windows(source, journal), None if total is None else max(0, total - state.taken))

    def load(self, out: RunDirectory) -> None:
        """Load the worker's model, and see that the disk can hold the result."""
        began = time.perf_counter()
        with self.progress.spinner(f"loading {self.config.model}"):
            self.worker.load()
        self._load_seconds = time.perf_counter() - began
        out.require_space(int(1.05 * self.worker.saved_size()))

    def drive(self, out: RunDirectory, journal: Journal, windows: Iterable[Window], total: int | None, *, may_be_empty: bool = False) -> Path:
        """Run windows of turns from the journal's state, then finish the run and put its folder in place.

        ``total`` is the number of edits to come, if it is known.
        """
        state, run = journal.state, self._describe(journal.state)
        state.seconds = dict.fromkeys(_PHASES, 0.0) | state.seconds
        state.seconds["load"] += self._load_seconds
        self.tracker.start(out.path.name, _parameters(run), run_id=state.mlflow_run_id)
        status = "FAILED"
        try:
            self._edit(journal, windows, total)
            if not journal.state.edits and not may_be_empty:
                raise UltraEditError(self._why_nothing(journal))
            self._checkpoint(journal)
            run["digests_after"] = self.worker.digest()
            with self._timed(state, "save"), self.progress.spinner("saving the model"):
                self.worker.save(out.staging / "model")
            self._finish(out, journal, run)
            status = "FINISHED"
        finally:
            journal.close()
            self.tracker.close(status)
        out.commit()
        return out.path

    def _windows(self, source: EditFile, journal: Journal) -> Iterator[Window]:
        """Windows of the edit file from the journal's state on; the state follows what was read."""
        state, config, worker = journal.state, self.config, self.worker
        intake = Intake(
            source, worker.tokenizer, max_tokens=worker.max_tokens, limit=config.limit, strict=config.strict, after=state.record, taken=state.taken
        )

        def set_aside(bad: BadRecord) -> None:
            logger.warning("record %d set aside: %s", bad.number, bad.reason)
            journal.rejected.add({"record": bad.number, "reason": bad.reason, "content": bad.raw})
            state.rejected += 1

        turns = in_turns(intake.edits(set_aside), config.edits_per_turn)
        while window := list(islice(turns, config.lookahead)):
            state.record, state.taken = intake.record, intake.taken
            yield Window(window, len(window))
        state.record, state.input_done = intake.record, True

    def _edit(self, journal: Journal, windows: Iterable[Window], total: int | None) -> None:
        state, every = journal.state, self.config.checkpoint_every
        last = state.turn
        with self.progress.bar("editing", total) as advance:
            for window in windows:
                state.window += 1
                for prepared in self.worker.prepare(window.turns)[: window.apply]:
                    self._turn(journal, prepared)
                    advance(len(prepared.turn.edits))
                if every and state.turn - last >= every:
                    self._checkpoint(journal)
                    last = state.turn

    def _turn(self, journal: Journal, prepared: PreparedTurn) -> None:
        state = journal.state
        state.turn += 1
        edits = _as_asked(prepared.turn)
        try:
            report = self.worker.apply(prepared)
        except TurnRefused as error:
            outcome = f"refused: {error}"
            self._refuse(journal, edits, error)
            row: dict[str, Any] = {"turn": state.turn, "refused": str(error)}
        else:
            outcome, row = APPLIED, self._note(state, report)
        journal.ledger.add(edits, source=state.sources, window=state.window, turn=state.turn, outcome=outcome)
        journal.turns.add(row)

    def _note(self, state: RunState, report: TurnReport) -> dict[str, Any]:
        state.edits += report.edits
        state.turns += 1
        for phase, seconds in report.seconds.items():
            if phase != "measure":
                state.seconds["capture" if phase == "prefix" else phase] += seconds
        with self._timed(state, "watch"):
            watched = self.worker.watch()
        self.tracker.log(_turn_metrics(report, watched), step=state.edits)
        return {**asdict(report), "turn": state.turn, "total_edits": state.edits, "watch": watched}

    def _refuse(self, journal: Journal, edits: list[TokenizedEdit], error: TurnRefused) -> None:
        state = journal.state
        named = ", ".join(repr(edits[i].request.prompt) for i in error.culprits[:5])
        caused = f"; caused by {named}" if named else ""
        logger.error("turn %d was refused, its %d edits are not applied: %s%s", state.turn, len(edits), error, caused)
        state.refused += len(edits)
        for edit in edits:
            content = {"prompt": edit.request.prompt, "target": edit.request.target}
            journal.rejected.add({"record": edit.record, "reason": f"turn {state.turn} was refused: {error}{caused}", "content": content})

    def _why_nothing(self, journal: Journal) -> str:
        journal.sync()
        lines = journal.rejected.path.read_text(encoding="utf-8").splitlines()
        why = f"; the last one because {json.loads(lines[-1])['reason']}" if lines else ""
        return f"no edit was applied: {journal.state.rejected} records were rejected, {journal.state.refused} edits refused{why}"

    def _checkpoint(self, journal: Journal) -> None:
        with self._timed(journal.state, "checkpoint"):
            self._settle_digest(journal.state)
            journal.state.watch = self.worker.watch_state()
            journal.state.mlflow_run_id = self.tracker.run_id(wait=False) or journal.state.mlflow_run_id
            journal.checkpoint(self.worker.save_state)

    def _settle_digest(self, state: RunState) -> None:
        """Have the SHA-256 of a new input in the state; its first checkpoint waits for it."""
        if state.source["sha256"] is None and self._digest is not None:
            state.source["sha256"] = self._digest.result()
            self.tracker.params({"input_sha256": state.source["sha256"]})

    def _describe(self, state: RunState) -> dict[str, Any]:
        described = self.worker.describe()
        modules = described["modules"]
        masters = "kept" if described["float32_masters"] else "not needed" if described["dtype"] == "float32" else "off"
        size = f"{described['parameters'] / 1e9:.2f} B parameters"
        logger.info("model     %s, %s, %s on %s", described["architecture"], size, described["dtype"], described["device"])
        logger.info("modules   %d: %s", len(modules), ", ".join(modules[:3]) + (", ..." if len(modules) > 3 else ""))
        logger.info("learning rate %g, float32 masters %s, input format %s", described["learning_rate"], masters, state.source["format"])
        return {
            "config": self.config.as_dict(),
            "model": described,
            "input": state.source,
            "base_fingerprint": state.base,
            "digests_before": state.base_digests,
            "versions": _versions(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }

    def _finish(self, out: RunDirectory, journal: Journal, run: dict[str, Any]) -> None:
        """Measure, and write what is known of the run."""
        state, memory = journal.state, _peak_memory()
        with self._timed(state, "evaluation"):
            metrics = assess(self.worker, journal.ledger, self.config, out.staging / "edits.parquet", self.progress)
        state.seconds["total"] += time.perf_counter() - self._began
        counts = {name: getattr(state, name) for name in ("edits", "turns", "rejected", "refused")}
        seconds = {name: round(value, 4) for name, value in state.seconds.items()}
        run["mlflow_run_id"] = self.tracker.run_id()
        out.write_json("run.json", run)
        out.write_json("metrics.json", {**metrics, **counts, "seconds": seconds, "peak_memory_bytes": max(memory, _peak_memory())})
        journal.sync()
        plot_run(_history(journal), out.staging / "plots" / "run.png")
        final = {f"final_{name}": value for name, value in metrics.items()} | {f"seconds_{name}": value for name, value in seconds.items()}
        self.tracker.log({**final, "rejected": state.rejected, "refused": state.refused, "peak_memory_bytes": _peak_memory()}, step=state.edits)
        for name in ("run.json", "metrics.json", "edits.parquet", "rejected.jsonl", "turns.jsonl", "plots"):
            if (out.staging / name).exists():
                self.tracker.artifact(out.staging / name)

    @contextmanager
    def _timed(self, state: RunState, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            state.seconds[phase] += time.perf_counter() - began


_PHASES = ("load", "capture", "solve", "apply", "watch", "checkpoint", "save", "evaluation", "total")


def _as_asked(turn: Turn) -> list[TokenizedEdit]:
    """A turn's edits in the order of their requests."""
    return [edit for _, edit in sorted(zip(turn.order, turn.edits, strict=True), key=lambda pair: pair[0])]


def _history(journal: Journal) -> list[dict[str, Any]]:
    with journal.turns.path.open(encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if "refused" not in row]


def _turn_metrics(report: TurnReport, watched: dict[str, float | None]) -> dict[str, float | None]:
    norms = report.shift_norms
    return {
        "loss": report.loss,
        "efficacy_before": report.efficacy_before,
        **{f"watch_{name}": value for name, value in watched.items() if not name.endswith("_before")},
        "shift_norm": sum(n * n for n in norms.values()) ** 0.5,
        **{f"shift_norm.{name}": value for name, value in norms.items()},
        **{f"turn_seconds_{phase}": seconds for phase, seconds in report.seconds.items() if phase != "measure"},
    }


def _parameters(run: dict[str, Any]) -> dict[str, Any]:
    model = run["model"]
    return {
        **run["config"],
        "modules": ", ".join(model["modules"]),
        "learning_rate": model["learning_rate"],
        **{name: model[name] for name in ("architecture", "parameters", "device", "dtype", "float32_masters")},
        **({"input_sha256": run["input"]["sha256"]} if run["input"]["sha256"] else {}),
        **{f"version_{name}": version for name, version in run["versions"].items()},
    }


def _versions() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "safetensors", "pyarrow")}
    return {"python": platform.python_version(), "platform": platform.platform(), "threads": str(torch.get_num_threads()), **versions}


def _peak_memory() -> int:
    """Largest resident memory of this process, or of the GPU if that is larger, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(peak, torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else peak
