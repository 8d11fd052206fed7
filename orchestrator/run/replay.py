"""Going back: the same loop over the ledger, from the checkpoint before.

roll_back   the model as it was after a turn: the windows since the checkpoint run again, up to that turn
remove      the model as if some edits had never been asked for: the edits since the checkpoint, less these, cut into
            turns and windows again
"""

import logging
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path

from editing import InputError
from editing.turn import TokenizedEdit, Turn, in_turns, tokenize
from orchestrator.run.checkpoint import STATE, Checkpoint, Checkpoints
from orchestrator.run.coordinator import Coordinator
from orchestrator.run.directory import RunDirectory
from orchestrator.run.journal import Journal, RunState
from orchestrator.run.ledger import ROLLED_BACK, Entry, Ledger
from orchestrator.run.resume import check_same_run, settings_of
from orchestrator.run.warm_up import from_ledger
from workers.worker import Worker

logger = logging.getLogger("ultraedit")

_BEGINNING = -1
"""Before any checkpoint."""

Windows = Callable[[Journal, Ledger, Worker], Iterator[list[Turn]]]


def roll_back(coordinator: Coordinator, to_turn: int) -> Path:
    """Make a finished run's folder what it was after a turn. Later edits stay in the ledger, marked.

    Raises:
        InputError: There is no such turn, or no finished run.
    """
    path, ledger = _finished(coordinator)
    last = max((entry.turn for entry in ledger if not entry.rolled_back), default=0)
    if not 0 <= to_turn < last:
        raise InputError(f"to-turn: expected a turn from 0 to {last - 1}, found {to_turn}; {path} has {last} turns")

    def windows(journal: Journal, old: Ledger, worker: Worker) -> Iterator[list[Turn]]:
        state, done = journal.state, journal.state.window
        for turns in old.windows():
            if turns[0][0].window <= done:
                continue
            wanted = [turn for turn in turns if not turn[0].rolled_back and turn[0].turn <= to_turn]
            if wanted:
                state.sources, state.window = wanted[0][0].source, wanted[0][0].window - 1
                yield [_turn(worker, turn) for turn in wanted]
            for turn in turns[len(wanted) :]:
                journal.ledger.keep_rolled_back(turn)
        state.source = {**state.source, "sha256": ROLLED_BACK}  # so that the same file can be asked for again

    return _replay(coordinator, path, before=to_turn, windows=windows)


def remove(coordinator: Coordinator, ids: Collection[str]) -> Path:
    """Make a finished run's folder what it would be if some edits had never been asked for.

    Raises:
        InputError: An id is not in the ledger, or there is no finished run.
    """
    path, ledger = _finished(coordinator)
    found = {entry.id: entry.turn for entry in ledger if entry.id in ids and not entry.rolled_back}
    if missing := sorted(set(ids) - found.keys()):
        raise InputError(f"edit: {path} has no edit with the id {missing[0]!r}; 'ultraedit history {path} --edits' lists them")

    def windows(journal: Journal, old: Ledger, worker: Worker) -> Iterator[list[Turn]]:
        state, done = journal.state, journal.state.window
        later = (entry for entry in old if entry.window > done and not entry.rolled_back)
        for source, entries in groupby(later, key=lambda entry: entry.source):
            state.sources = source
            kept = (entry for entry in entries if not _set_aside(journal, entry, found))
            turns = in_turns(_tokenized(worker, kept), coordinator.config.edits_per_turn, before=state.turn)
            while window := list(islice(turns, coordinator.worker.lookahead)):
                yield window
        # turns that were rolled back before are in no window of this run any more
        undone = (entry for entry in old if entry.window > done and entry.rolled_back)
        journal.ledger.keep_rolled_back(undone, window=state.window + 1)

    warming = from_ledger(ledger, coordinator.config.warm_up, 0)
    before = _BEGINNING if any(entry.id in found for entry in warming) else min(found.values()) - 1
    return _replay(coordinator, path, before=before, windows=windows, without=found)


def _set_aside(journal: Journal, entry: Entry, ids: Collection[str]) -> bool:
    if entry.id not in ids:
        return False
    content = {"id": entry.id, "prompt": entry.request.prompt, "target": entry.request.target}
    journal.rejected.add({"record": entry.record, "reason": "removed on request", "content": content})
    return True


def _finished(coordinator: Coordinator) -> tuple[Path, Ledger]:
    path = Path(coordinator.config.output)
    if not (path / "run.json").is_file() or not (path / "ledger").is_dir():
        raise InputError(f"{path}: holds no finished run with a ledger; finish it first with 'ultraedit edit --resume {path}'")
    return path, Ledger(path / "ledger")


def _replay(coordinator: Coordinator, path: Path, *, before: int, windows: Windows, without: Collection[str] = ()) -> Path:
    """Drive a run over windows of its own ledger, less some edits, from the newest checkpoint that is not after a turn."""
    worker, config = coordinator.worker, coordinator.config
    with RunDirectory(path, overwrite=True) as out:
        coordinator.load(out)
        old = Ledger(path / "ledger")
        checkpoints = Checkpoints(path / "checkpoints").all()
        last = RunState(**checkpoints[-1].state)
        check_same_run(last, settings_of(config, worker), worker.fingerprint())
        start = next((c for c in reversed(checkpoints) if c.turn <= before), None)
        state = _begin(out, last, start, worker)
        logger.info("replaying  from turn %d", state.turn)
        warming = from_ledger(old, config.warm_up, last.warmed, without) if start is None else []
        journal = Journal(out.staging, state, keep=config.keep)

        def then_catch_up() -> Iterator[list[Turn]]:
            yield from windows(journal, old, worker)
            state.sources, state.window, state.input_done = last.sources, max(state.window + 1, last.window), True

        total = sum(1 for entry in old if entry.window > state.window and not entry.rolled_back)
        return coordinator.drive(out, journal, then_catch_up(), total, replay=True, warming=_tokenized(worker, warming))


def _begin(out: RunDirectory, last: RunState, start: Checkpoint | None, worker: Worker) -> RunState:
    """Fill the staging folder with the run as it was at a checkpoint, or at the very beginning."""
    out.branch()
    shutil.rmtree(out.staging / "checkpoints", ignore_errors=True)
    if start is None:
        begun = {name: getattr(last, name) for name in ("config", "settings", "base", "base_digests", "source")}
        return RunState(**begun, record=last.record, taken=last.taken)
    shutil.copytree(start.path, out.staging / "checkpoints" / start.path.name)
    state = RunState(**{**start.state, "source": last.source, "record": last.record, "taken": last.taken})
    worker.load_state(start.path / STATE, state.watch)
    return state


def _turn(worker: Worker, entries: list[Entry]) -> Turn:
    """One turn as it was, whoever superseded whom in it."""
    return next(in_turns(_tokenized(worker, entries), len(entries), before=entries[0].turn - 1))


def _tokenized(worker: Worker, entries: Iterable[Entry]) -> list[TokenizedEdit]:
    return [tokenize(worker.joiner, entry.request, max_tokens=worker.max_tokens, record=entry.record) for entry in entries]
