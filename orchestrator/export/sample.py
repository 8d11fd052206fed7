"""Edits of a run's ledger that a model is supposed to know after a turn: a seeded sample of them."""

import hashlib
import json
import random
from dataclasses import dataclass

from orchestrator.run.ledger import Entry, Ledger


@dataclass(frozen=True, slots=True)
class Contained:
    """The edits between two turns.

    Attributes:
        count: How many were applied.
        superseded: Of these, how many a later one overruled.
        sha256: Over their records, ids, prompts and targets, in their order.
        sample: Some of those that stand, in their order.
    """

    count: int
    superseded: int
    sha256: str
    sample: list[Entry]


def edits_between(ledger: Ledger, first: int, last: int, *, size: int, seed: int) -> Contained:
    """The edits of turns ``first + 1 .. last``.

    Args:
        ledger: The run's.
        first: Turn before them.
        last: Their last turn.
        size: Most edits of the sample.
        seed: Of the sample.
    """
    digest, count = hashlib.sha256(), 0
    standing: dict[int, int] = {}  # by prompt the place of its last edit: tens of bytes for each
    for place, entry in enumerate(ledger):
        if entry.applied and first < entry.turn <= last:
            digest.update(json.dumps([entry.place, entry.id, *entry.request.in_short().values()]).encode())
            standing[hash(entry.request.question)] = place
            count += 1
    places = sorted(standing.values())
    chosen = set(places if size >= len(places) else random.Random(seed).sample(places, size))
    sample = [entry for place, entry in enumerate(ledger) if place in chosen]
    return Contained(count, count - len(places), digest.hexdigest(), sample)
