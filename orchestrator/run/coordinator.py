"""A run: edits in, an edited model and everything worth knowing about it out.

    edit file --intake--> windows of turns (the lookahead) --worker: prefix, once a window
                 |                                             |
                 v                                             v  a turn at a time
           rejected.jsonl                       worker: capture, solve, apply  ----> TurnReport --> tracker, turns.jsonl
                                                               |         |
                                                               |         `--> ledger, and every few turns a checkpoint
                                                               `-- health: first, every few and last turn, judged by the governor's limits
    after the last turn:  save the model  ->  evaluate the edits of the ledger  ->  generate text for a sample  ->  report
    at the very end:      the whole folder is put in place in one rename

A run that is resumed, appended to, rolled back or freed of some edits is the same loop from another state over other
windows: see ``resume.py`` and ``replay.py``.

    intake.py, windows.py   from records to windows, each with its cursor    recorder.py      what every turn did
    governor.py             limits, and the decision to stop                 description.py   what the run is
    warm_up.py              the first edits are seen once before             finish.py        the model, metrics, plots, artifacts
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from editing import OutOfMemory, TurnRefused, UltraEditError
from editing.datasets import EditFile
from editing.errors import ran_out_of_memory
from editing.turn import PreparedTurn, Turn
from orchestrator.digest import InputDigest
from orchestrator.progress import Progress
from orchestrator.run.checkpoint import Checkpoint
from orchestrator.run.description import describe_run, tracker_parameters
from orchestrator.run.directory import RunDirectory
from orchestrator.run.finish import Finish
from orchestrator.run.governor import Collapsed, Governor
from orchestrator.run.intake import FirstLook
from orchestrator.run.journal import Journal
from orchestrator.run.ledger_evaluation import assess
from orchestrator.run.recorder import TurnRecorder
from orchestrator.run.resume import schedule_edits
from orchestrator.run.run_config import RunConfig
from orchestrator.run.timing import PHASES, timed
from orchestrator.run.unedited_answers import UneditedAnswers
from orchestrator.run.warm_up import warm_up
from orchestrator.run.windows import Schedule, Window
from orchestrator.tracking import Tracker
from workers.protocol import Worker

logger = logging.getLogger("ultraedit")

__all__ = ["Collapsed", "Coordinator"]


class Coordinator:
    """Drives one worker through one run.

    Args:
        config: The run's configuration.
        worker: Where the model lives; not loaded yet.
        tracker: Where the run is followed.
        progress: Shows a person how far it is.
        edits: The configured edit file, if somebody has looked at it already; it is not opened again for what is known of it.

    Attributes:
        turn: Turns so far, which tell whether a run that failed had got on.
        has_checkpoint: Whether the run has written a checkpoint, so that it can be resumed.
    """

    def __init__(self, config: RunConfig, worker: Worker, tracker: Tracker, progress: Progress, edits: EditFile | None = None) -> None:
        self.config, self.worker, self.tracker, self.progress = config, worker, tracker, progress
        self._edits = edits
        self._began = time.perf_counter()
        self.turn, self.has_checkpoint = 0, False

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
        source = self._edits or config.edit_file()
        with (
            RunDirectory(Path(config.output), overwrite=config.overwrite or resume, resume=resume) as out,
            InputDigest(source.path, source.parts) as digest,
        ):
            look = FirstLook(source, limit=config.limit, strict=config.strict)
            return self.drive(out, lambda: schedule_edits(out, config, self.worker, look, digest, resume=resume), look.num_edits(config.limit))

    def drive(self, out: RunDirectory, make_schedule: Callable[[], Schedule | None], num_edits: int | None = None) -> Path:
        """Load the model, run a schedule, finish the run and put its folder in place.

        Args:
            out: The run's folder.
            make_schedule: Makes the schedule once the model is loaded; ``None`` where nothing is left to do.
            num_edits: Edits to come, if that is known before.

        Raises:
            Collapsed, UltraEditError: As :meth:`run`.
        """
        load_seconds = self._load(out, num_edits)
        schedule = make_schedule()
        if schedule is None:
            out.discard()
            return out.path
        recorder, governor, run = self._begin(out, schedule)
        schedule.state.seconds["load"] += load_seconds
        status = "FAILED"
        try:
            last = self._edit(schedule, recorder, governor)
            finish = Finish(self.config, self.worker, self.tracker, self.progress)
            finish.run(out, recorder.journal, last, run, began=self._began, collapse=governor.stop_reason)
            status = "FINISHED"
        finally:
            recorder.journal.close()
            self.tracker.close(status)
        out.commit()
        if governor.stop_reason:
            raise Collapsed(governor.stop_reason, out.path, governor.healthy_turn)
        return out.path

    def close(self) -> None:
        """Let go of the model, and of every worker."""
        self.worker.close()

    def _load(self, out: RunDirectory, num_edits: int | None) -> float:
        """Load the worker's model and check that the disk can hold the result. Returns the seconds that loading took."""
        for line in self.worker.outlook(num_edits):
            logger.info("%s", line)
        began = time.perf_counter()
        with self.progress.spinner(f"loading {self.config.model}"):
            self.worker.load()
        seconds = time.perf_counter() - began
        if self.config.save == "full":
            out.require_space(int(1.05 * self.worker.saved_size()))
        return seconds

    def _begin(self, out: RunDirectory, schedule: Schedule) -> tuple[TurnRecorder, Governor, dict[str, Any]]:
        """The recorder, the governor and the description of a run, from the state that it begins from."""
        config, state = self.config, schedule.state
        state.config = {**state.config, **config.places}  # where they are now, if the run is an earlier one
        if schedule.model_state is not None:
            self.worker.load_state(schedule.model_state, state.watch_state)
        state.seconds = dict.fromkeys(PHASES, 0.0) | state.seconds
        journal = Journal(out.staging, state, keep=config.keep)
        may_stop = config.on_collapse != "warn" and not schedule.is_replay
        governor = Governor(config.limits, state.limits_passed, state.last_healthy_turn, watch_every=config.watch_every, may_stop=may_stop)
        run = describe_run(config, self.worker.describe(), state)
        self.tracker.start(out.path.name, tracker_parameters(run), run_id=state.mlflow_run_id)
        return TurnRecorder(journal, self.tracker, schedule.digest), governor, run

    def _edit(self, schedule: Schedule, recorder: TurnRecorder, governor: Governor) -> Checkpoint:
        """Run all windows; the checkpoint after the last one."""
        state, every = schedule.state, self.config.checkpoint_every
        with timed(state.seconds, "warm_up"):
            state.num_warm_up_edits += warm_up(self.worker, schedule.warm_up, self.config)
        turn_of_checkpoint = state.num_turns
        with self.progress.bar("editing", schedule.num_edits) as advance:
            for window in schedule.windows:
                recorder.begin_window(window)
                self.run_window(window, recorder, governor, advance)
                recorder.end_window(window)
                if governor.stop_reason:
                    break
                if every and state.num_turns - turn_of_checkpoint >= every:
                    self._checkpoint(recorder, governor)
                    turn_of_checkpoint = state.num_turns
        if not state.num_edits_applied and not schedule.is_replay:
            raise UltraEditError(recorder.explain_nothing_applied())
        return self._checkpoint(recorder, governor)

    def _checkpoint(self, recorder: TurnRecorder, governor: Governor) -> Checkpoint:
        written = recorder.write_checkpoint(self.worker, governor)
        self.has_checkpoint = True
        return written

    def run_window(self, window: Window, recorder: TurnRecorder, governor: Governor, advance: Callable[[int], None]) -> None:
        """Run the turns of one window, up to the one at which the governor stops.

        Args:
            window: The window, which the recorder has begun.
            recorder: Writes down what the turns did.
            governor: Judges the model after each of them.
            advance: Moves a bar on by a number of edits.

        Raises:
            OutOfMemory: Naming the turn.
        """
        if not window.turns:
            return
        with _naming_turn(window.turns[0]):
            prepared = self.worker.prepare(window.turns)
        for number, each in enumerate(prepared, start=1):
            with _naming_turn(each.turn):
                self._run_turn(each, recorder, governor, may_be_last=window.may_be_last and number == len(prepared))
            advance(len(each.turn.edits) + len(each.turn.superseded))
            if governor.stop_reason:
                recorder.add_not_applied([p.turn for p in prepared[number:]], governor.stop_reason)
                return

    def _run_turn(self, prepared: PreparedTurn, recorder: TurnRecorder, governor: Governor, *, may_be_last: bool) -> None:
        state, turn = recorder.journal.state, prepared.turn
        asked_before = state.num_requested_edits
        recorder.begin_turn(turn)
        self.turn = state.num_turns
        try:
            report = self.worker.apply(prepared)
        except TurnRefused as error:
            recorder.add_refused(turn, error)
        else:
            vitals = None
            if governor.wants_vitals(state.num_turns, report, is_first=state.num_turns_applied == 0, may_be_last=may_be_last):
                with timed(state.seconds, "watch"):
                    vitals = self.worker.measure_health(prepared)
            recorder.add_applied(turn, report, vitals)
            governor.judge(state.num_turns, report, vitals)
        if any(asked_before < milestone <= state.num_requested_edits for milestone in self.config.eval_at):
            self._evaluate_milestone(recorder)

    def _evaluate_milestone(self, recorder: TurnRecorder) -> None:
        config, journal = self.config, recorder.journal
        journal.sync()
        with timed(journal.state.seconds, "evaluation"):
            unedited = UneditedAnswers(self.worker, journal.state.base_fingerprint)
            metrics = assess(self.worker, journal.ledger, unedited, sample=config.eval_sample, seed=config.seed, progress=self.progress)
        recorder.add_milestone(metrics)


@contextmanager
def _naming_turn(turn: Turn) -> Iterator[None]:
    """Say in which turn the memory was not enough."""
    try:
        yield
    except OutOfMemory as error:
        raise OutOfMemory(f"turn {turn.before + 1}: {error}") from None
    except (RuntimeError, MemoryError) as error:
        if ran_out_of_memory(error):
            raise OutOfMemory(f"turn {turn.before + 1}: {OutOfMemory.here(error)}") from None
        raise
