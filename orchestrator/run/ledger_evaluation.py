"""Evaluates the edits of the ledger, all of them or a seeded sample, and generates text for a sample of them."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from editing.blanks import bare
from editing.monitoring.evaluation import EditResult, Means, Summary
from orchestrator.progress import Progress
from orchestrator.run.ledger import Entry, Ledger
from orchestrator.run.results import EditRow, EditsFile, Generated
from orchestrator.run.run_config import RunConfig
from orchestrator.tokenizing import RequestTokenizer
from workers.protocol import Worker

_CHUNK = 200
"""Rows that are written at a time, which keeps memory constant."""

Mask = NDArray[np.bool_]
"""One yes or no for each entry of the ledger that was not rolled back."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Which entries the model is supposed to know.

    Attributes:
        applied: Their turn was applied.
        overwritten: A later applied edit gave their prompt another target.
    """

    applied: Mask
    overwritten: Mask

    @classmethod
    def of(cls, ledger: Ledger) -> "Standing":
        """Read from a ledger; takes tens of bytes for each entry."""
        row = np.dtype([("prompt", np.int64), ("target", np.int64), ("applied", bool)])
        rows = np.fromiter(((hash(bare(e.request.prompt)), hash(bare(e.request.target)), e.applied) for e in _entries(ledger)), dtype=row)
        applied = rows["applied"]
        overwritten = np.zeros_like(applied)
        overwritten[applied] = _overruled(rows["prompt"][applied], rows["target"][applied])
        return cls(applied, overwritten)

    @property
    def mask(self) -> Mask:
        return self.applied & ~self.overwritten

    def sample(self, size: int | None, seed: int) -> Mask:
        """A uniform sample of the entries that stand; all of them if there are no more."""
        standing = np.flatnonzero(self.mask)
        if size is not None and size < len(standing):
            standing = random.Random(seed).sample(standing.tolist(), size)  # type: ignore[assignment]
        chosen = np.zeros_like(self.applied)
        chosen[standing] = True
        return chosen


def assess(worker: Worker, ledger: Ledger, *, sample: int | None, seed: int, progress: Progress) -> dict[str, float | None]:
    """Mean metrics of the edits that the model is supposed to know, or of a seeded sample of them; ``evaluated`` is their number."""
    chosen = Standing.of(ledger).sample(sample, seed)
    summary = Summary()
    with progress.bar("evaluating", int(chosen.sum())) as advance:
        for result in _results(worker, compress(_entries(ledger), chosen)):
            summary.add(result)
            advance(1)
    return {**summary.means(), "evaluated": summary.count}


def assess_all(worker: Worker, ledger: Ledger, config: RunConfig, path: Path, progress: Progress) -> dict[str, float | None]:
    """Evaluate the edits of a run and write one row for each.

    Args:
        worker: Holds the edited model.
        ledger: The edits.
        config: Says whether to evaluate, how many, and how many texts to generate.
        path: Where the rows go.
        progress: Shows how far it is.

    Returns:
        Mean metrics over the evaluated edits that were applied and that no later edit overwrote.
    """
    standing = Standing.of(ledger)
    # without a sample, edits that were refused or overwritten are measured too: their rows tell what became of them
    evaluated = np.full_like(standing.applied, config.eval) if config.eval_sample is None else standing.sample(config.eval_sample, config.seed)
    written = standing.sample(config.generate if config.eval else 0, config.seed)
    results = _results(worker, compress(_entries(ledger), evaluated & config.eval))
    texts = _texts(worker, compress(_entries(ledger), written))
    summary, texts_right = Summary(), Means(("efficacy_generated", "generalization_generated"))
    with EditsFile(path) as file, progress.bar("evaluating", len(standing.applied)) as advance:
        entries = zip(_entries(ledger), standing.overwritten, evaluated & config.eval, written, strict=True)
        rows = (EditRow(e, bool(o), next(results) if r else None, next(texts) if t else None) for e, o, r, t in entries)
        while chunk := list(islice(rows, _CHUNK)):
            file.write(chunk)
            for row in chunk:
                if row.stands and row.result:
                    summary.add(row.result)
                if row.stands and row.generated:
                    texts_right.add(row)
            advance(len(chunk))
    counts = {"generated": texts_right.count, "evaluated": summary.count, "overwritten": int(standing.overwritten.sum())}
    return {**summary.means(), **texts_right.means(), **counts}


def _overruled(prompts: NDArray[np.int64], targets: NDArray[np.int64]) -> Mask:
    """Which edits, given in their order, have a later one with the same prompt and another target."""
    order = np.lexsort((np.arange(len(prompts)), prompts))
    prompts, targets = prompts[order], targets[order]
    same_prompt = prompts[:-1] == prompts[1:]
    overruled = np.zeros(len(prompts), dtype=bool)
    for i in np.flatnonzero(same_prompt)[::-1]:  # few: from the newest back, through the edits of each prompt
        overruled[i] = overruled[i + 1] or targets[i] != targets[i + 1]
    back = np.empty_like(overruled)
    back[order] = overruled
    return back


def _results(worker: Worker, entries: Iterable[Entry]) -> Iterator[EditResult]:
    tokenizer = RequestTokenizer.of(worker)
    for chunk in _chunks(entries, worker.edits_at_a_time):
        yield from worker.evaluate([tokenizer.tokenize(entry.request, entry.record) for entry in chunk])


def _texts(worker: Worker, entries: Iterable[Entry]) -> Iterator[Generated]:
    for chunk in _chunks(entries, worker.edits_at_a_time):
        prompts = [entry.request.prompt for entry in chunk]
        before = worker.generate(prompts, unedited=True)
        with_rephrase = [k for k, entry in enumerate(chunk) if entry.request.rephrase]
        after = worker.generate([*prompts, *(chunk[k].request.rephrase or "" for k in with_rephrase)])  # at once: it may have to read the model
        rephrased = dict(zip(with_rephrase, after[len(prompts) :], strict=True))
        yield from (Generated(before[k], after[k], rephrased.get(k)) for k in range(len(chunk)))


def _entries(ledger: Ledger) -> Iterator[Entry]:
    return (entry for entry in ledger if not entry.rolled_back)


def _chunks(items: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
