"""A run that stays open: turns come one at a time, and each is kept or undone before the next.

    begin, or open at a checkpoint --> try_turn --> keep   the ledger, then a checkpoint
                                          |
                                          `-------> undo   weights, statistics and files as the last checkpoint has them
    replay: the turns of another ledger, less some edits, from a checkpoint on

The loop over a turn, the journal, the recorder and the governor are those of any run; what is missing is the end: a live
run's folder has no evaluation and no saved model, and a turn that is not kept leaves nothing in it.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from editing import EditRequest, InputError, TurnRefused
from editing.monitoring.health import Vitals
from editing.turn import Turn, TurnReport, in_turns
from orchestrator.progress import Progress
from orchestrator.run.checkpoint import STATE, Checkpoint, Checkpoints
from orchestrator.run.coordinator import Coordinator
from orchestrator.run.governor import Governor
from orchestrator.run.journal import Journal, RunState
from orchestrator.run.ledger import APPLIED, Entry, Ledger
from orchestrator.run.recorder import TurnRecorder
from orchestrator.run.resume import check_same_run, fresh_state, settings_of
from orchestrator.run.run_config import RunConfig
from orchestrator.run.timing import PHASES
from orchestrator.run.windows import Cursor, Window
from orchestrator.tokenizing import RequestTokenizer
from orchestrator.tracking import Tracker
from workers.protocol import Worker

logger = logging.getLogger("ultraedit")

SOURCE: dict[str, Any] = {"path": "live", "format": "live", "sha256": "live", "limit": None}
"""What a live run says of its input, which is no file."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What a turn did, before it is kept or undone.

    Attributes:
        report: The turn's report; ``None`` if it was refused.
        vitals: The model's health after it.
        limit: The governor's limits that it has passed, as one sentence; empty if there are none.
        refused: Why it was refused; empty if it was applied.
        culprits: Positions of the edits that caused a refusal, as far as they are known.
    """

    report: TurnReport | None
    vitals: Vitals | None
    limit: str = ""
    refused: str = ""
    culprits: tuple[int, ...] = ()


class _Recorder(TurnRecorder):
    """Remembers the last turn besides writing it down."""

    last = Tried(None, None)

    def add_applied(self, turn: Turn, report: TurnReport, vitals: Vitals | None) -> None:
        self.last = Tried(report, vitals)
        super().add_applied(turn, report, vitals)

    def add_refused(self, turn: Turn, error: TurnRefused) -> None:
        self.last = Tried(None, None, refused=str(error), culprits=error.culprits)
        super().add_refused(turn, error)


class LiveRun:
    """A loaded model, and the run folder that its turns go to.

    Args:
        config: The run's configuration; ``edits`` and ``output`` are not read.
        worker: Where the model lives; not loaded yet.
        tracker: Where the run is followed.
    """

    def __init__(self, config: RunConfig, worker: Worker, tracker: Tracker) -> None:
        self.config, self.worker, self._tracker = config, worker, tracker
        self._coordinator = Coordinator(config, worker, tracker, Progress.silent())
        self._journal: Journal | None = None
        self._last: Checkpoint | None = None
        self._fingerprint = ""
        self._tracked = False

    def load(self) -> None:
        """Load the model.

        Raises:
            UltraEditError: It cannot be loaded.
        """
        self.worker.load()
        self._fingerprint = self.worker.fingerprint()

    def begin(self, folder: Path) -> Checkpoint:
        """Begin a new run in a folder, with a checkpoint before the first turn. To be called once, on the unedited model."""
        folder.mkdir(parents=True, exist_ok=True)
        state = fresh_state(self.config, self.worker, dict(SOURCE))
        self._enter(folder, state)
        return self.keep()

    def open(self, folder: Path, turn: int) -> Checkpoint:
        """Go to a checkpoint of a folder. What the folder's files have beyond it is cut off.

        Raises:
            InputError: There is no such checkpoint, or it belongs to another model or to other settings.
        """
        found = next((c for c in Checkpoints(folder / "checkpoints").all() if c.turn == turn), None)
        if found is None:
            raise InputError(f"{folder}: has no valid checkpoint of turn {turn}")
        state = RunState.from_stored(found)
        self._check_same(folder, state)
        self.worker.load_state(found.path / STATE, state.watch_state)
        self._enter(folder, state)
        self._last = found
        return found

    @property
    def journal(self) -> Journal:
        """The files and the state of the run that is open."""
        if self._journal is None:
            raise RuntimeError("no run is open; call begin or open first")
        return self._journal

    @property
    def tokenizer(self) -> RequestTokenizer:
        """Tokenizes requests for the model."""
        return RequestTokenizer.of(self.worker)

    def try_turn(self, requests: Sequence[EditRequest]) -> Tried:
        """Apply one turn, in memory. It is to be followed by :meth:`keep` or :meth:`undo`.

        Raises:
            InvalidRequest: A request cannot be tokenized. Nothing was applied.
            UltraEditError: The turn could not be carried out; the run is to be undone.
        """
        state, tokenizer = self.journal.state, self.tokenizer
        edits = [tokenizer.tokenize(request, record) for record, request in enumerate(requests, start=state.last_record + 1)]
        turn = next(in_turns(edits, len(edits), before=state.num_turns))
        cursor = Cursor(window=state.num_windows + 1, record=state.last_record + len(edits), num_usable=state.num_usable_edits + len(edits))
        return self._run(Window(cursor=cursor, turns=(turn,), may_be_last=True), may_stop=True)

    def keep(self) -> Checkpoint:
        """Have the turn in the ledger and in a checkpoint, both on the disk before this returns."""
        self._last = self._recorder.write_checkpoint(self.worker, self._governor)
        return self._last

    def undo(self) -> None:
        """Go back to the last checkpoint."""
        if self._last is None:
            raise RuntimeError("no checkpoint was written yet")
        self.open(self._last.path.parents[1], self._last.turn)

    def replay(self, ledger: Ledger, without: Collection[str] = ()) -> int:
        """Run the turns of another ledger that come after the open checkpoint, as they were but for some edits. :meth:`keep` is to follow.

        Args:
            ledger: The other ledger, which begins as the open run does.
            without: Ids of edits that are left out. A turn of which nothing is left is no turn any more.

        Returns:
            How many turns ran.
        """
        count, begun = 0, self.journal.state.num_windows
        for entries in turns_of(ledger):
            kept = [entry for entry in entries if entry.id not in without]
            if entries[0].window > begun and kept:
                self._replay_turn(kept)
                count += 1
        return count

    def close(self) -> None:
        """Let go of the model, and of every worker."""
        self._close_journal()
        if self._tracked:
            self._tracker.close("FINISHED")
        self._coordinator.close()

    def _check_same(self, folder: Path, state: RunState) -> None:
        try:
            check_same_run(state, settings_of(self.config, self.worker), self._fingerprint)
        except InputError as error:  # which names options of a run that ends
            told = str(error).removeprefix("resume: ").partition(";")[0]
            raise InputError(f"{folder}: {told}; give the same, or begin in another folder") from None

    def _replay_turn(self, entries: Sequence[Entry]) -> None:
        state, tokenizer = self.journal.state, self.tokenizer
        edits = [tokenizer.tokenize(entry.request, entry.record) for entry in entries]
        turn = next(in_turns(edits, len(edits), before=state.num_turns))
        cursor = Cursor(window=state.num_windows + 1, record=entries[-1].record, num_usable=state.num_usable_edits + len(edits))
        self._run(Window(cursor=cursor, turns=(turn,), may_be_last=True), may_stop=False)

    def _run(self, window: Window, *, may_stop: bool) -> Tried:
        config, state = self.config, self.journal.state
        self._governor = Governor(config.limits, state.limits_passed, state.last_healthy_turn, watch_every=config.watch_every, may_stop=may_stop)
        self._recorder.last = Tried(None, None)
        self._recorder.begin_window(window)
        self._coordinator.run_window(window, self._recorder, self._governor, lambda _: None)
        self._recorder.end_window(window)
        last = self._recorder.last
        return Tried(last.report, last.vitals, self._governor.stop_reason, last.refused, last.culprits)

    def _enter(self, folder: Path, state: RunState) -> None:
        self._close_journal()
        state.seconds = dict.fromkeys(PHASES, 0.0) | state.seconds
        self._journal = Journal(folder, state, keep=self.config.keep)
        self._recorder = _Recorder(self._journal, self._tracker)
        self._governor = Governor(
            self.config.limits, state.limits_passed, state.last_healthy_turn, watch_every=self.config.watch_every, may_stop=True
        )
        if not self._tracked:
            self._tracker.start("live", {"model": self.config.model, **state.settings}, run_id=state.mlflow_run_id)
            self._tracked = True

    def _close_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def turns_of(ledger: Ledger) -> Iterator[list[Entry]]:
    """The turns of a live run's ledger, each with all of its edits in the order of their records."""
    for _, entries in groupby((e for e in ledger if not e.rolled_back), key=lambda e: (e.window, e.turn)):
        yield list(entries)


def applied_ids(ledger: Ledger) -> set[str]:
    """Ids of the edits that a ledger has applied."""
    return {entry.id for entry in ledger if entry.outcome == APPLIED}
