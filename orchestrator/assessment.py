"""After the last turn: every edit of the ledger measured, a sample of them written out as text, ``edits.parquet``."""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from editing.evaluation import EditResult, summarize
from editing.turn import TokenizedEdit, tokenize
from orchestrator.config import RunConfig
from orchestrator.ledger import Entry, Ledger
from orchestrator.progress import Progress
from orchestrator.results import EditRow, EditsFile, Generated
from workers.worker import Worker

_CHUNK = 200
"""Edits evaluated at a time, which keeps memory constant."""


def assess(worker: Worker, ledger: Ledger, config: RunConfig, path: Path, progress: Progress) -> dict[str, float | None]:
    """Measure all edits and write one row each.

    Args:
        worker: Holds the edited model.
        ledger: The edits.
        config: Says whether to evaluate, and how many texts to generate.
        path: Where the rows go.
        progress: Shows how far it is.

    Returns:
        Mean metrics over the edits that were applied and that no later edit overwrote.
    """
    total = sum(1 for _ in _entries(ledger))
    overwritten = find_overwritten(ledger)
    chosen = set(random.Random(config.seed).sample(range(total), min(config.generate, total))) if config.eval else set()
    results: list[EditResult] = []
    written: list[EditRow] = []
    with EditsFile(path) as file, progress.bar("evaluating", total) as advance:
        for chunk in _chunks(enumerate(_entries(ledger))):
            rows = _rows(worker, chunk, overwritten, chosen, evaluate=config.eval)
            file.write(rows)
            standing = [row for row in rows if row.stands]
            results += [row.result for row in standing if row.result]
            written += [row for row in standing if row.generated]
            advance(len(chunk))
    metrics = summarize(results)
    for name in ("efficacy_generated", "generalization_generated"):
        values = [value for row in written if (value := getattr(row, name)) is not None]
        metrics[name] = sum(values) / len(values) if values else None
    return {**metrics, "generated": len(written), "overwritten": len(overwritten)}


def find_overwritten(ledger: Ledger) -> set[int]:
    """Positions of applied edits whose prompt a later applied edit gave another target."""
    latest: dict[int, list[tuple[int, int]]] = {}  # by prompt: the positions and targets that the newest target replaced, or is
    overwritten: set[int] = set()
    for position, entry in enumerate(_entries(ledger)):
        if not entry.applied:
            continue
        prompt, target = hash(entry.request.prompt), hash(entry.request.target)
        standing = latest.get(prompt, [])
        overwritten |= {p for p, t in standing if t != target}
        latest[prompt] = [(p, t) for p, t in standing if t == target] + [(position, target)]
    return overwritten


def _rows(worker: Worker, chunk: Sequence[tuple[int, Entry]], overwritten: set[int], chosen: set[int], *, evaluate: bool) -> list[EditRow]:
    edits = [tokenize(worker.tokenizer, entry.request, max_tokens=worker.max_tokens, record=entry.record) for _, entry in chunk]
    results: Sequence[EditResult | None] = worker.evaluate(edits) if evaluate else [None] * len(edits)
    asked = [k for k, (position, _) in enumerate(chunk) if position in chosen]
    texts = dict(zip(asked, _generate(worker, [edits[k] for k in asked]), strict=True))
    return [EditRow(entry, position in overwritten, results[k], texts.get(k)) for k, (position, entry) in enumerate(chunk)]


def _generate(worker: Worker, edits: Sequence[TokenizedEdit]) -> list[Generated]:
    if not edits:
        return []
    prompts = [edit.request.prompt for edit in edits]
    before = worker.generate(prompts, unedited=True)
    after = worker.generate(prompts)
    asked = [k for k, edit in enumerate(edits) if edit.request.rephrase]
    rephrased = dict(zip(asked, worker.generate([edits[k].request.rephrase or "" for k in asked]), strict=True))
    return [Generated(before[k], after[k], rephrased.get(k)) for k in range(len(edits))]


def _entries(ledger: Ledger) -> Iterator[Entry]:
    return (entry for entry in ledger if not entry.rolled_back)


def _chunks(items: Iterator[tuple[int, Entry]]) -> Iterator[list[tuple[int, Entry]]]:
    while chunk := list(islice(items, _CHUNK)):
        yield chunk
