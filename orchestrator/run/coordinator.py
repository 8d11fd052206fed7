"""A run: edits in, an edited model and everything worth knowing about it out.

    edit file --intake--> windows of turns (the lookahead) --worker: prefix, once a window
                 |                                             |
                 v                                             v  a turn at a time
           rejected.jsonl                       worker: capture, solve, apply  ----> TurnReport --> tracker, turns.jsonl
                                                               |         |
                                                               |         `--> ledger, and every few turns a checkpoint
                                                               `-- health: every few turns, judged by the governor's limits
    after the last turn:  save the model  ->  evaluate the edits of the ledger  ->  generate text for a sample  ->  report
    at the very end:      the whole folder is put in place in one rename

A run that is resumed, appended to, rolled back or freed of some edits is the same loop from another state over other
windows: see ``resume.py`` and ``replay.py``.
"""

import json
import logging
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from editing import OutOfMemory, TurnRefused, UltraEditError
from editing.datasets import BadRecord, EditFile
from editing.errors import ran_out_of_memory
from editing.files.delta import write_delta
from editing.memory.budget import peak_bytes
from editing.monitoring.health import Vitals
from editing.presets import PUBLISHED
from editing.state import stored_weights
from editing.turn import PreparedTurn, TokenizedEdit, Turn, TurnReport, in_turns
from orchestrator.digest import InputDigest
from orchestrator.progress import Progress
from orchestrator.run.checkpoint import STATE, Checkpoint
from orchestrator.run.conflicts import Conflict
from orchestrator.run.directory import RunDirectory
from orchestrator.run.intake import Intake, look_ahead
from orchestrator.run.journal import Journal, RunState
from orchestrator.run.ledger import APPLIED, ROLLED_BACK
from orchestrator.run.ledger_evaluation import assess, assess_all
from orchestrator.run.plots import plot_milestones, plot_run
from orchestrator.run.resume import describe_source, fresh_state, resumed_state
from orchestrator.run.run_config import RunConfig
from orchestrator.run.warm_up import from_file, warm_up
from orchestrator.tracking import Tracker
from workers.worker import Worker

logger = logging.getLogger("ultraedit")


class Collapsed(UltraEditError):
    """A run was stopped by a limit; what it had done is complete in its folder.

    Attributes:
        path: The run's folder.
        healthy_turn: Last measured turn that passed no limit.
    """

    exit_code = 3

    def __init__(self, reason: str, path: Path, healthy_turn: int) -> None:
        super().__init__(reason)
        self.path, self.healthy_turn = path, healthy_turn


class Coordinator:
    """Drives one worker through one run.

    Args:
        config: The run's configuration.
        worker: Where the model lives; not loaded yet.
        tracker: Where the run is followed.
        progress: Shows a person how far it is.

    Attributes:
        turn: Turns so far, for who wants to know whether a run that failed had got on.
        has_checkpoint: Whether the run has written a checkpoint, so that it can be resumed.
    """

    def __init__(self, config: RunConfig, worker: Worker, tracker: Tracker, progress: Progress) -> None:
        self.config, self.worker, self.tracker, self.progress = config, worker, tracker, progress
        self._began = time.perf_counter()
        self._load_seconds = 0.0
        self.turn, self.has_checkpoint = 0, False
        self._acts, self._stopped = False, ""
        self._digest: InputDigest | None = None

    def run(self, *, resume: bool = False) -> Path:
        """Edit the model with the configured file.

        Args:
            resume: Go on with an unfinished run, or append to a finished one, if there is one.

        Returns:
            The run's folder, complete.

        Raises:
            Collapsed: A limit was passed and the run was to stop then. Its folder is complete.
            UltraEditError: The run cannot go on. What it had checkpointed can be resumed; else nothing was written.
        """
        config = self.config
        source = EditFile(config.edits, config.format, seed=config.seed)
        with (
            RunDirectory(Path(config.output), overwrite=config.overwrite or resume, resume=resume) as out,
            InputDigest(source.path, source.parts) as self._digest,
        ):
            total = look_ahead(source, config.limit)
            self.load(out, total)
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
            warming = from_file(source, config, self.worker) if checkpoint is None else ()
            return self.drive(out, journal, self._windows(source, journal), None if total is None else max(0, total - state.taken), warming=warming)

    def close(self) -> None:
        """Let go of the model, and of every worker."""
        self.worker.close()

    def load(self, out: RunDirectory, num_edits: int | None = None) -> None:
        """Load the worker's model for so many edits, if that is known, and see that the disk can hold the result."""
        for line in self.worker.outlook(num_edits):
            logger.info("%s", line)
        began = time.perf_counter()
        with self.progress.spinner(f"loading {self.config.model}"):
            self.worker.load()
        self._load_seconds = time.perf_counter() - began
        if self.config.save == "full":
            out.require_space(int(1.05 * self.worker.saved_size()))

    def drive(
        self,
        out: RunDirectory,
        journal: Journal,
        windows: Iterable[list[Turn]],
        total: int | None,
        *,
        replay: bool = False,
        warming: Iterable[TokenizedEdit] = (),
    ) -> Path:
        """Run windows of turns from the journal's state, then finish the run and put its folder in place.

        Args:
            out: The run's folder.
            journal: The run's files and state.
            windows: What to run; the turns of a window go through the frozen layers in one pass.
            total: Number of edits in ``windows``, for the progress bar, if it is known.
            replay: These turns were judged before: a limit passed is not news, and nothing may be left.
            warming: Edits of the warm-up, where the run is at its beginning.
        """
        self._acts = self.config.on_collapse != "warn" and not replay
        state, run = journal.state, self._describe(journal.state)
        state.seconds = dict.fromkeys(_PHASES, 0.0) | state.seconds
        state.seconds["load"] += self._load_seconds
        self.tracker.start(out.path.name, _parameters(run), run_id=state.mlflow_run_id)
        status = "FAILED"
        try:
            with self._timed(state, "warm_up"):
                state.warmed += warm_up(self.worker, warming, self.config)
            self._edit(journal, windows, total)
            if not journal.state.edits and not replay:
                raise UltraEditError(self._why_nothing(journal))
            last = self._checkpoint(journal)
            run["digests_after"] = self.worker.digest()
            with self._timed(state, "save"), self.progress.spinner("saving the model"):
                self._save(out, last, run["model"]["dtype"])
            self._finish(out, journal, run)
            status = "FINISHED"
        finally:
            journal.close()
            self.tracker.close(status)
        out.commit()
        if self._stopped:
            raise Collapsed(self._stopped, out.path, state.healthy_turn)
        return out.path

    def _windows(self, source: EditFile, journal: Journal) -> Iterator[list[Turn]]:
        """Windows of the edit file from the journal's state on; the state follows what was read."""
        state, config, worker = journal.state, self.config, self.worker
        intake = Intake(
            source, worker.joiner, max_tokens=worker.max_tokens, limit=config.limit, strict=config.strict, after=state.record, taken=state.taken
        )

        def set_aside(bad: BadRecord) -> None:
            logger.warning("record %d set aside: %s", bad.number, bad.reason)
            journal.rejected.add({"record": bad.number, "reason": bad.reason, "content": bad.raw})
            state.rejected += 1

        turns = in_turns(intake.edits(set_aside), config.edits_per_turn, before=state.turn)
        while window := list(islice(turns, worker.lookahead)):
            state.record, state.taken = intake.record, intake.taken
            yield window
        state.record, state.input_done = intake.record, True

    def _edit(self, journal: Journal, windows: Iterable[list[Turn]], total: int | None) -> None:
        state, every = journal.state, self.config.checkpoint_every
        last = state.turn
        with self.progress.bar("editing", total) as advance:
            for window in windows:
                state.window += 1
                with _naming_turn(window[0]):
                    prepared = self.worker.prepare(window)
                for number, turn in enumerate(prepared, start=1):
                    with _naming_turn(turn.turn):
                        self._turn(journal, turn)
                    advance(len(turn.turn.edits) + len(turn.turn.superseded))
                    if self._stopped:
                        self._leave(journal, [p.turn for p in prepared[number:]])
                        return
                if every and state.turn - last >= every:
                    self._checkpoint(journal)
                    last = state.turn

    def _turn(self, journal: Journal, prepared: PreparedTurn) -> None:
        state, turn = journal.state, prepared.turn
        state.turn += 1
        self.turn = state.turn
        before, state.asked = state.asked, state.asked + len(turn.edits) + len(turn.superseded)
        vitals = None
        try:
            report = self.worker.apply(prepared)
        except TurnRefused as error:
            outcome = f"refused: {error}"
            self._refuse(journal, turn.as_asked, error)
            row: dict[str, Any] = {"turn": state.turn, "refused": str(error)}
        else:
            outcome = APPLIED
            self._count(state, report, turn)
            if state.turn % self.config.watch_every == 0 or state.turns == 1:
                with self._timed(state, "watch"):
                    vitals = self.worker.measure_health(prepared)
            self.tracker.log(_turn_metrics(report, vitals), step=state.edits)
            row = {**asdict(report), "turn": state.turn, "total_edits": state.edits, "vitals": vitals.as_dict() if vitals else None}
        conflicts = journal.prompts.add_turn(turn, state.turn, applied=outcome == APPLIED)
        self._say(conflicts, state)
        row["conflicts"] = [conflict.as_dict() for conflict in conflicts]
        journal.ledger.add_turn(turn, source=state.sources, window=state.window, turn_number=state.turn, outcome=outcome)
        journal.turns.add(row)
        if outcome == APPLIED:
            self._judge(state, report, vitals)
        if any(before < milestone <= state.asked for milestone in self.config.eval_at):
            self._milestone(journal)

    def _count(self, state: RunState, report: TurnReport, turn: Turn) -> None:
        state.edits += report.edits
        state.otherwise_tokenized += sum(not sequence.whole for sequence in turn.sequences)
        state.turns += 1
        if report.subjects is not None:
            state.without_subject += report.edits - report.subjects
        for phase, seconds in report.seconds.items():
            if phase != "measure":
                state.seconds["capture" if phase == "prefix" else phase] += seconds

    def _say(self, conflicts: Sequence[Conflict], state: RunState) -> None:
        """Say conflicts as they come, the first ones of a run; all of them are in its files."""
        for number, conflict in enumerate(conflicts, start=state.conflicts + 1):
            if number <= _CONFLICTS_SAID:
                logger.warning("conflict: %s", conflict)
            elif number == _CONFLICTS_SAID + 1:
                logger.warning("conflict: more of them are in turns.jsonl")
        state.conflicts += len(conflicts)

    def _judge(self, state: RunState, report: TurnReport, vitals: Vitals | None) -> None:
        """Warn when a limit is passed, once until it holds again, or stop."""
        passed = self.config.limits.passed(report, vitals)
        for name, sentence in passed.items():
            if name not in state.passed:
                logger.warning("collapse: after turn %d %s", state.turn, sentence)
        if vitals is not None and not passed:
            state.healthy_turn = state.turn
        unmeasured = [] if vitals is not None else [name for name in state.passed if name != "weight_growth"]
        state.passed = sorted({*passed, *unmeasured})
        if passed and self._acts:
            self._stopped = f"stopped after turn {state.turn}: {'; '.join(passed.values())}"

    def _leave(self, journal: Journal, turns: Sequence[Turn]) -> None:
        """Write down the turns that were read and will not be applied."""
        state = journal.state
        for number, turn in enumerate(turns, start=state.turn + 1):
            journal.ledger.add_turn(turn, source=state.sources, window=state.window, turn_number=number, outcome=ROLLED_BACK)
            self._set_aside(journal, turn.as_asked, f"not applied: the run {self._stopped}")

    def _milestone(self, journal: Journal) -> None:
        state, config = journal.state, self.config
        journal.sync()
        with self._timed(state, "evaluation"):
            metrics = assess(self.worker, journal.ledger, sample=config.eval_sample, seed=config.seed, progress=self.progress)
        state.milestones.append({"edits": state.edits, **metrics})
        self.tracker.log({f"eval_{name}": value for name, value in metrics.items()}, step=state.edits)

    def _refuse(self, journal: Journal, edits: list[TokenizedEdit], error: TurnRefused) -> None:
        state = journal.state
        named = ", ".join(repr(edits[i].request.prompt) for i in error.culprits[:5])
        caused = f"; caused by {named}" if named else ""
        logger.error("turn %d was refused, its %d edits are not applied: %s%s", state.turn, len(edits), error, caused)
        state.refused += len(edits)
        self._set_aside(journal, edits, f"turn {state.turn} was refused: {error}{caused}")

    def _set_aside(self, journal: Journal, edits: Iterable[TokenizedEdit], reason: str) -> None:
        for edit in edits:
            content = {"id": edit.request.id, "prompt": edit.request.prompt, "target": edit.request.target}
            journal.rejected.add({"record": edit.record, "reason": reason, "content": content})

    def _why_nothing(self, journal: Journal) -> str:
        journal.sync()
        lines = journal.rejected.path.read_text(encoding="utf-8").splitlines()
        why = f"; the last one because {json.loads(lines[-1])['reason']}" if lines else ""
        return f"no edit was applied: {journal.state.rejected} records were rejected, {journal.state.refused} edits refused{why}"

    def _checkpoint(self, journal: Journal) -> Checkpoint:
        with self._timed(journal.state, "checkpoint"):
            self._settle_digest(journal.state)
            journal.state.watch = self.worker.watch_state()
            journal.state.mlflow_run_id = self.tracker.run_id(wait=False) or journal.state.mlflow_run_id
            written = journal.checkpoint(self.worker.save_state)
            self.has_checkpoint = True
        return written

    def _save(self, out: RunDirectory, last: Checkpoint, dtype: str) -> None:
        """Write the edited model, or the edited weights alone, which the last checkpoint has."""
        if self.config.save == "full":
            self.worker.save(out.staging / "model")
        else:
            weights = stored_weights(last.path / STATE)
            write_delta(out.staging / "delta", weights, base=self.config.model, fingerprint=last.state["base"], dtype=dtype)

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
        where = f"{self.config.replicas} x {self.config.shards} workers, " if self.config.is_distributed else ""
        logger.info("model     %s, %s, %s on %s%s", described["architecture"], size, described["dtype"], where, described["device"])
        if described["preset"]:
            logger.info("preset    %s", described["preset"])
        subjects = described["method"]["subject_modules"]
        logger.info("modules   %s", _some([name for name in modules if name not in subjects]))
        if subjects:
            logger.info("          %s at the subject", _some(subjects))
        for line in described["text"]:
            logger.info("text      %s", line)
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
        if state.without_subject:
            missing = "no subject that stands in their prompt, and are written at the answer alone"
            logger.warning("subjects: %d of %d edits have %s; data inspect counts the field", state.without_subject, state.edits, missing)
        if state.otherwise_tokenized:
            what = _OTHERWISE[self.worker.describe()["method"]["join"] == PUBLISHED]
            logger.warning("text: of %d of %d edits %s", state.otherwise_tokenized, state.edits, what)
        with self._timed(state, "evaluation"):
            metrics = assess_all(self.worker, journal.ledger, self.config, out.staging / "edits.parquet", self.progress)
        state.seconds["total"] += time.perf_counter() - self._began
        counts = {name: getattr(state, name) for name in _COUNTS}
        if self._stopped:
            counts["collapse"] = self._stopped
        seconds = {name: round(value, 4) for name, value in state.seconds.items()}
        run["mlflow_run_id"] = self.tracker.run_id()
        out.write_json("run.json", run)
        out.write_json("metrics.json", {**metrics, **counts, "seconds": seconds, "peak_memory_bytes": max(memory, _peak_memory())})
        journal.sync()
        plot_run(_history(journal), out.staging / "plots" / "run.png")
        plot_milestones(state.milestones, out.staging / "plots" / "lifelong.png")
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


@contextmanager
def _naming_turn(turn: Turn) -> Iterator[None]:
    try:
        yield
    except OutOfMemory as error:
        raise OutOfMemory(f"turn {turn.before + 1}: {error}") from None
    except (RuntimeError, MemoryError) as error:
        if ran_out_of_memory(error):
            raise OutOfMemory(f"turn {turn.before + 1}: {OutOfMemory.here(error)}") from None
        raise


_COUNTS = ("edits", "turns", "rejected", "refused", "conflicts", "without_subject", "otherwise_tokenized", "milestones")

_OTHERWISE = {
    True: "the published tokens are not those of the text as typed; the metrics named as_typed are of that text",
    False: "prompt and answer have other tokens when they are encoded together; the prompt is read by itself, and the answer as what goes on from it",
}
"""What is said of edits with other tokens than their text as typed, by whether they are the published ones."""

_CONFLICTS_SAID = 10
"""Conflicts that are shown one by one; the rest is in the run's files."""

_PHASES = ("load", "warm_up", "capture", "solve", "refine", "apply", "watch", "checkpoint", "save", "evaluation", "total")


def _history(journal: Journal) -> list[dict[str, Any]]:
    with journal.turns.path.open(encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if "refused" not in row]


def _turn_metrics(report: TurnReport, vitals: Vitals | None) -> dict[str, float | None]:
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


def _parameters(run: dict[str, Any]) -> dict[str, Any]:
    model = run["model"]
    return {
        **run["config"],
        "preset": model["preset"],
        "modules": ", ".join(model["modules"]),
        "learning_rate": model["learning_rate"],
        **model["method"],
        "subject_modules": ", ".join(model["method"]["subject_modules"]),
        **{name: model[name] for name in ("architecture", "parameters", "device", "dtype", "float32_masters")},
        **({"input_sha256": run["input"]["sha256"]} if run["input"]["sha256"] else {}),
        **{f"version_{name}": version for name, version in run["versions"].items()},
    }


def _some(names: list[str]) -> str:
    return f"{len(names)}: {', '.join(names[:3])}" + (", ..." if len(names) > 3 else "")


def _versions() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "safetensors", "pyarrow")}
    return {"python": platform.python_version(), "platform": platform.platform(), "threads": str(torch.get_num_threads()), **versions}


def _peak_memory() -> int:
    """Largest resident memory of this process, or of the GPU if that is larger, in bytes."""
    return max(peak_bytes(), torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)
