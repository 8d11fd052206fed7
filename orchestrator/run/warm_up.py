"""Warm-up: the lifelong statistics see the first edits of the input before the first of them is made.

They then see them again, each in its turn: what the warm-up gives is a first idea of the scales, which later edits outweigh.
It belongs to a run's beginning. A run that is replayed from there takes the same edits from its ledger.
"""

import heapq
import logging
from collections.abc import Collection, Iterable, Iterator
from itertools import islice

from editing import InputError, TurnRefused
from editing.datasets import EditFile
from editing.turn import TokenizedEdit, in_turns
from orchestrator.run.intake import Intake
from orchestrator.run.ledger import Entry, Ledger
from orchestrator.run.run_config import RunConfig
from workers.worker import Worker

logger = logging.getLogger("ultraedit")


def from_file(source: EditFile, config: RunConfig, worker: Worker) -> Iterator[TokenizedEdit]:
    """The first usable edits of a file."""
    if config.warm_up:
        count = config.warm_up if config.limit is None else min(config.warm_up, config.limit)
        yield from Intake(source, worker.joiner, max_tokens=worker.max_tokens, limit=count, strict=config.strict).edits()


def from_ledger(ledger: Ledger, count: int, used: int, without: Collection[str] = ()) -> list[Entry]:
    """The first edits of a run's first input, less some that are left out.

    Args:
        ledger: The run's ledger.
        count: Edits wanted.
        used: Edits that the run's own warm-up used.
        without: Ids that are left out.

    Raises:
        InputError: The ledger lacks some of those that were used: the run was stopped before it came to them.
    """
    first = heapq.nsmallest(count + len(without), (entry for entry in ledger if entry.source == 1), key=lambda entry: entry.record) if count else []
    if len(first) < used:
        raise InputError(
            f"{ledger.folder}: holds {len(first)} of the {used} edits of the run's warm-up, so it cannot be run again from its beginning"
        )
    return [entry for entry in first if entry.id not in without][:count]


def warm_up(worker: Worker, edits: Iterable[TokenizedEdit], config: RunConfig) -> int:
    """Let a worker observe edits, turn by turn; how many."""
    turns, used = in_turns(edits, config.edits_per_turn), 0
    while window := list(islice(turns, worker.lookahead)):
        for prepared in worker.prepare(window):
            used += len(prepared.turn.edits) + len(prepared.turn.superseded)
            try:
                worker.observe(prepared)
            except TurnRefused as error:
                logger.warning("warm-up: %d edits are left out: %s", len(prepared.turn.edits), error)
    if used:
        logger.info("warm-up   the moments have seen the first %d edits", used)
    return used
