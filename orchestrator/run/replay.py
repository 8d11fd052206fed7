"""Going back: the same loop over the ledger, from the checkpoint before.

roll_back   the model as it was after a turn: the windows since the checkpoint run again, up to that turn
remove      the model as if some edits had never been requested: the edits since the checkpoint, less these, cut into
            turns and windows again
"""

import logging
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path

from editing import InputError
from editing.turn import Turn, in_turns
from orchestrator.run.checkpoint import STATE, Checkpoint, Checkpoints
from orchestrator.run.coordinator import Coordinator
from orchestrator.run.directory import RunDirectory, read_run
from orchestrator.run.journal import RunState
from orchestrator.run.ledger import APPLIED, ROLLED_BACK, Entry, Ledger
from orchestrator.run.resume import REPLAYING, check_same_run, settings_of
from orchestrator.run.warm_up import from_ledger
from orchestrator.run.windows import Cursor, Schedule, Window
from orchestrator.tokenizing import RequestTokenizer

logger = logging.getLogger("ultraedit")

_BEGINNING = -1
"""Before any checkpoint."""

_ENTRIES_AT_A_TIME = 1000


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a replay begins, and what it has for its windows.

    Attributes:
        cursor: How far the run had come at the checkpoint.
        turn: Turns until then.
        num_edits: Edits that will run again.
        tokenizer: Tokenizes them.
        lookahead: Turns of a window.
    """

    cursor: Cursor
    turn: int
    num_edits: int
    tokenizer: RequestTokenizer
    lookahead: int

    def follows(self, entry: Entry) -> bool:
        """Whether an edit came after it, and was not undone since."""
        return entry.window > self.cursor.window and not entry.rolled_back


Windows = Callable[[Ledger, _Start], Iterator[Window]]


def roll_back(coordinator: Coordinator, to_turn: int) -> Path:
    """Make a finished run's folder what it was after a turn. Later edits stay in the ledger, marked.

    Raises:
        InputError: There is no such turn, or no finished run.
    """
    path, ledger = _finished(coordinator)
    last = max((entry.turn for entry in ledger if not entry.rolled_back), default=0)
    if not 0 <= to_turn < last:
        raise InputError(f"to-turn: expected a turn from 0 to {last - 1}, found {to_turn}; {path} has {last} turns")

    def keeps(entry: Entry) -> bool:
        return not entry.rolled_back and entry.turn <= to_turn

    def windows(old: Ledger, start: _Start) -> Iterator[Window]:
        cursor = start.cursor
        for turns in old.windows():
            if turns[0][0].window <= start.cursor.window:
                continue
            kept = [turn for turn in turns if keeps(turn[0])]
            if kept:
                cursor = replace(cursor, source=kept[0][0].source, window=kept[0][0].window)
            again = [_turn(start.tokenizer, entries) for entries in kept]
            undone = [entry for entries in turns[len(kept) :] for entry in entries]
            yield Window(cursor=cursor, turns=again, rolled_back=undone, may_be_last=any(entries[0].turn == to_turn for entries in kept))

    return _replay(coordinator, path, before=to_turn, windows=windows, keeps=keeps, outcome=ROLLED_BACK)


def remove(coordinator: Coordinator, ids: Collection[str]) -> Path:
    """Make a finished run's folder what it would be if some edits had never been requested.

    Args:
        coordinator: Of the run.
        ids: Ids of the edits; ``ID@RECORD`` names one of several that have the same id.

    Raises:
        InputError: An id is not in the ledger, or several edits have it, or there is no finished run.
    """
    path, ledger = _finished(coordinator)
    removed = _named(path, ledger, ids)
    places = {entry.place for entry in removed}

    def keeps(entry: Entry) -> bool:
        return not entry.rolled_back and entry.place not in places

    def windows(old: Ledger, start: _Start) -> Iterator[Window]:
        yield Window(cursor=start.cursor, removed=removed)
        again = (entry for entry in old if start.follows(entry) and keeps(entry))
        last = start.cursor
        for window in _cut_again(again, start, coordinator.config.edits_per_turn):
            last = window.cursor
            yield window
        # turns that were rolled back before are in no window of this run any more
        undone = (replace(entry, window=last.window + 1) for entry in old if entry.window > start.cursor.window and entry.rolled_back)
        while some := list(islice(undone, _ENTRIES_AT_A_TIME)):
            yield Window(cursor=last, rolled_back=some)

    in_warm_up = any(entry.place in places for entry in from_ledger(ledger, coordinator.config.warm_up, 0))
    before = _BEGINNING if in_warm_up else min(entry.turn for entry in removed) - 1
    return _replay(coordinator, path, before=before, windows=windows, keeps=keeps, outcome=APPLIED, without=places)


def _cut_again(entries: Iterable[Entry], start: _Start, edits_per_turn: int) -> Iterator[Window]:
    """Edits of a ledger in new turns and windows. No window has edits of two inputs."""
    cursor, turn, num_left = start.cursor, start.turn, start.num_edits
    for source, of_source in groupby(entries, key=lambda entry: entry.source):
        edits = (start.tokenizer.tokenize(entry.request, entry.record) for entry in of_source)
        turns = in_turns(edits, edits_per_turn, before=turn)
        while window := list(islice(turns, start.lookahead)):
            cursor = replace(cursor, source=source, window=cursor.window + 1)
            turn += len(window)
            num_left -= sum(len(each.edits) + len(each.superseded) for each in window)
            yield Window(cursor=cursor, turns=window, may_be_last=not num_left)


def _named(path: Path, ledger: Ledger, ids: Collection[str]) -> list[Entry]:
    """The one edit of each id.

    Raises:
        InputError: There is none, or more than one.
    """
    found: dict[str, list[Entry]] = {name: [] for name in sorted(ids)}
    for entry in ledger:
        for name in {entry.id, f"{entry.id}@{entry.place}"} & found.keys():
            if not entry.rolled_back:
                found[name].append(entry)
    for name, entries in found.items():
        if not entries:
            raise InputError(f"edit: {path} has no edit with the id {name!r}; 'ultraedit history {path} --edits' lists them")
        if len(entries) > 1:
            places = [entry.place for entry in entries]
            hint = f"name one of them as {name}@{places[0]}, or each of them"
            raise InputError(f"edit: {path} has {len(entries)} edits with the id {name!r}, of records {', '.join(places[:10])}; {hint}")
    return sorted((entry for entries in found.values() for entry in entries), key=lambda entry: (entry.source, entry.record))


def _finished(coordinator: Coordinator) -> tuple[Path, Ledger]:
    path = Path(coordinator.config.output)
    if not (path / "run.json").is_file() or not (path / "ledger").is_dir():
        raise InputError(f"{path}: holds no finished run with a ledger; finish it first with 'ultraedit edit --resume {path}'")
    read_run(path)  # or it is refused
    return path, Ledger(path / "ledger")


def _replay(
    coordinator: Coordinator,
    path: Path,
    *,
    before: int,
    windows: Windows,
    keeps: Callable[[Entry], bool],
    outcome: str,
    without: Collection[str] = (),
) -> Path:
    """Drive a run over windows of its own ledger, from the newest checkpoint that is not after a turn.

    Args:
        coordinator: Of the run, with the unedited model.
        path: The run's folder.
        before: That turn.
        windows: Makes the windows.
        keeps: Whether an edit of the ledger is in them.
        outcome: What has become of the run's input when they are done.
        without: Places of edits that the warm-up leaves out.
    """
    worker, config = coordinator.worker, coordinator.config

    def make_schedule() -> Schedule:
        old = Ledger(path / "ledger")
        checkpoints = Checkpoints(path / "checkpoints").all()
        last = RunState.from_stored(checkpoints[-1])
        check_same_run(last, settings_of(config, worker), worker.fingerprint())
        checkpoint = next((c for c in reversed(checkpoints) if c.turn <= before), None)
        state = _begin(out, last, checkpoint)
        logger.info("replaying  from turn %d", state.num_turns)
        tokenizer, cursor = RequestTokenizer.of(worker), Cursor.of(state)
        num_edits = sum(1 for entry in old if entry.window > cursor.window and keeps(entry))
        start = _Start(cursor, state.num_turns, num_edits, tokenizer, worker.lookahead)
        warm_up = from_ledger(old, config.warm_up, last.num_warm_up_edits, without) if checkpoint is None else []
        return Schedule(
            state=state,
            windows=_then_close(windows(old, start), cursor, Cursor.of(last), outcome),
            num_edits=num_edits,
            model_state=None if checkpoint is None else checkpoint.path / STATE,
            warm_up=[tokenizer.tokenize(entry.request, entry.record) for entry in warm_up],
            is_replay=True,
        )

    with RunDirectory(path, overwrite=True) as out:
        return coordinator.drive(out, make_schedule)


def _then_close(windows: Iterable[Window], begin: Cursor, end: Cursor, outcome: str) -> Iterator[Window]:
    """Windows, and in the end the cursor of the run that was replayed, so that further edits come after all that it had."""
    number = begin.window
    for window in windows:
        number = window.cursor.window
        yield window
    yield Window(cursor=replace(end, window=max(number + 1, end.window), input_done=True, input_outcome=outcome))


def _begin(out: RunDirectory, last: RunState, checkpoint: Checkpoint | None) -> RunState:
    """Fill the staging folder with the run as it was at a checkpoint, or at the very beginning."""
    out.branch()
    shutil.rmtree(out.staging / "checkpoints", ignore_errors=True)
    source = {**last.source, "outcome": REPLAYING}
    if checkpoint is None:
        begun = {name: getattr(last, name) for name in ("config", "settings", "base_fingerprint", "base_digests")}
        return RunState(**begun, source=source, last_record=last.last_record, num_usable_edits=last.num_usable_edits)
    shutil.copytree(checkpoint.path, out.staging / "checkpoints" / checkpoint.path.name)
    return replace(RunState.from_stored(checkpoint), source=source, last_record=last.last_record, num_usable_edits=last.num_usable_edits)


def _turn(tokenizer: RequestTokenizer, entries: list[Entry]) -> Turn:
    """One turn as it was, with the edits that it superseded."""
    edits = [tokenizer.tokenize(entry.request, entry.record) for entry in entries]
    return next(in_turns(edits, len(entries), before=entries[0].turn - 1))
