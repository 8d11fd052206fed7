"""Windows: what a run does at a time, as values.

A window holds turns whose edits go through the frozen layers in one pass, what was left out on the way to them, and the
cursor: how far the input is read once they are done. Making the next window changes nothing of the run; the loop takes
the cursor over when it begins a window, and a checkpoint lies after a whole one.

    usable edits and bad records  --in_windows-->  Window, Window, ...  --the run's loop-->  model, ledger, checkpoints
    an earlier ledger             --replay.py-->   Window, Window, ...  ----^
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from editing.datasets import BadRecord
from editing.errors import InputError
from editing.turn import TokenizedEdit, Turn, TurnCutter
from orchestrator.digest import InputDigest
from orchestrator.run.journal import RunState
from orchestrator.run.ledger import Entry

_MAX_BAD = 100
"""Bad records that wait for a window, which keeps memory constant; more of them go ahead of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far a run has come with its inputs.

    Attributes:
        source: Number of the input, from 1.
        window: Number of the window, from 1; 0 before the first.
        record: Number of the last record that was read.
        num_usable: Usable edits of the input so far.
        input_done: Whether the input was read to its end.
        input_outcome: What became of the input's edits, where it is more than that they were edited.
    """

    source: int = 1
    window: int = 0
    record: int = 0
    num_usable: int = 0
    input_done: bool = False
    input_outcome: str | None = None

    @classmethod
    def of(cls, state: RunState) -> "Cursor":
        """Where a run's state is."""
        return cls(
            source=state.num_sources,
            window=state.num_windows,
            record=state.last_record,
            num_usable=state.num_usable_edits,
            input_done=state.input_done,
        )

    def store(self, state: RunState) -> None:
        """Move a run's state here."""
        state.num_sources, state.num_windows, state.last_record, state.num_usable_edits = self.source, self.window, self.record, self.num_usable
        state.input_done = self.input_done
        if self.input_outcome is not None:
            state.source = {**state.source, "outcome": self.input_outcome}


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What is done at a time. A window without turns moves the cursor and writes down the rest.

    Attributes:
        cursor: Where the run is once the window is done.
        turns: Turns that go through the frozen layers in one pass.
        bad: Records that were set aside.
        removed: Edits of an earlier ledger that are left out on request.
        rolled_back: Edits of an earlier ledger whose turns are undone; they stay in the ledger, marked.
        may_be_last: Whether no further turn is known of.
    """

    cursor: Cursor
    turns: Sequence[Turn] = ()
    bad: Sequence[BadRecord] = ()
    removed: Sequence[Entry] = ()
    rolled_back: Sequence[Entry] = ()
    may_be_last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What a run begins from and goes through.

    Attributes:
        state: The run's state. The journal keeps and changes it.
        windows: What to run.
        num_edits: Edits in ``windows``, if that is known.
        model_state: File with the model's state at ``state``; ``None`` for the unedited model.
        warm_up: Edits that the lifelong statistics see before the first turn.
        digest: SHA-256 of a new input, which the first checkpoint needs.
        is_replay: These turns were judged before: a limit passed is not news, and nothing may be left.
    """

    state: RunState
    windows: Iterable[Window]
    num_edits: int | None = None
    model_state: Path | None = None
    warm_up: Iterable[TokenizedEdit] = ()
    digest: InputDigest | None = None
    is_replay: bool = False


def in_windows(
    items: Iterable[TokenizedEdit | BadRecord], begin: Cursor, *, edits_per_turn: int, turns_per_window: int, num_turns: int = 0
) -> Iterator[Window]:
    """Cut the edits of an input into windows. A whole window waits for one more usable edit, which tells that it is not the last.

    Args:
        items: Usable edits and bad records, in the input's order.
        begin: Where the run is.
        edits_per_turn: Edits that share one shift.
        turns_per_window: Turns that go through the frozen layers in one pass.
        num_turns: Turns before the first one.

    Raises:
        InputError: As ``items``; the whole window before it comes first.
    """
    filling = _Filling(begin, TurnCutter(edits_per_turn, before=num_turns), turns_per_window)
    try:
        for item in items:
            yield from filling.add_bad(item) if isinstance(item, BadRecord) else filling.add_edit(item)
    except InputError:
        yield from filling.take_waiting(may_be_last=True)
        raise
    yield from filling.finish()


class _Filling:
    """The window that is being filled, and the whole one that waits for a sign that it is not the last."""

    def __init__(self, begin: Cursor, cutter: TurnCutter, turns_per_window: int) -> None:
        self._cursor, self._cutter, self._turns_per_window = begin, cutter, turns_per_window
        self._waiting: Window | None = None
        self._turns: list[Turn] = []
        self._bad: list[BadRecord] = []
        self._record, self._num_usable = begin.record, begin.num_usable

    def add_edit(self, edit: TokenizedEdit) -> Iterator[Window]:
        yield from self.take_waiting(may_be_last=False)
        self._record, self._num_usable = edit.record, self._num_usable + 1
        if turn := self._cutter.add(edit):
            self._turns.append(turn)
            if len(self._turns) == self._turns_per_window:
                self._close()

    def add_bad(self, bad: BadRecord) -> Iterator[Window]:
        self._record = bad.number
        self._bad.append(bad)
        if len(self._bad) == _MAX_BAD:
            yield from self.take_waiting(may_be_last=True)
            yield Window(cursor=self._cursor, bad=self._take_bad())

    def take_waiting(self, *, may_be_last: bool) -> Iterator[Window]:
        if self._waiting is not None:
            yield replace(self._waiting, may_be_last=may_be_last)
            self._waiting = None

    def finish(self) -> Iterator[Window]:
        if turn := self._cutter.rest():
            self._turns.append(turn)
        if self._turns:
            self._close()
        yield from self.take_waiting(may_be_last=True)
        end = replace(self._cursor, record=self._record, num_usable=self._num_usable, input_done=True)
        yield Window(cursor=end, bad=self._take_bad())

    def _close(self) -> None:
        self._cursor = replace(self._cursor, window=self._cursor.window + 1, record=self._record, num_usable=self._num_usable)
        self._waiting = Window(cursor=self._cursor, turns=tuple(self._turns), bad=self._take_bad())
        self._turns = []

    def _take_bad(self) -> tuple[BadRecord, ...]:
        taken, self._bad = tuple(self._bad), []
        return taken
