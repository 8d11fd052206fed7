"""Evaluates the edits of the ledger, all of them or a seeded sample, and generates text for a sample of them."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from editing.blanks import bare
from editing.config import RAW
from editing.datasets import BadRecord, NumberedRequest
from editing.model.framing import CHAT, has_template
from editing.monitoring.evaluation import EditResult, Means, Summary
from editing.monitoring.held_out import read_passages
from editing.monitoring.texts import CHAT_TOKENS, RAW_TOKENS, Answers
from editing.requests import EditRequest
from editing.turn import TokenizedEdit
from orchestrator.progress import Progress
from orchestrator.run.ledger import Entry, Ledger
from orchestrator.run.results import VERDICT_COLUMNS, EditRow, EditsFile, Generated
from orchestrator.run.run_config import RunConfig
from orchestrator.run.unedited_answers import UneditedAnswers
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
        rows = np.fromiter(((hash(e.request.question), hash(bare(e.request.target)), e.applied) for e in _entries(ledger)), dtype=row)
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


def assess(
    worker: Worker, ledger: Ledger, unedited: UneditedAnswers, *, sample: int | None, seed: int, progress: Progress
) -> dict[str, float | None]:
    """Mean metrics of the edits that the model is supposed to know, or of a seeded sample of them; ``evaluated`` is their number."""
    chosen = Standing.of(ledger).sample(sample, seed)
    summary = Summary()
    with progress.bar("evaluating", int(chosen.sum())) as advance:
        for result in _results(worker, unedited, compress(_entries(ledger), chosen)):
            summary.add(result)
            advance(1)
    return {**summary.means(), "evaluated": summary.count}


def assess_all(
    worker: Worker, ledger: Ledger, unedited: UneditedAnswers, config: RunConfig, path: Path, progress: Progress
) -> dict[str, float | None]:
    """Evaluate the edits of a run and write one row for each.

    Args:
        worker: Holds the edited model.
        ledger: The edits.
        unedited: Asks the worker about the unedited model.
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
    results = _results(worker, unedited, compress(_entries(ledger), evaluated & config.eval))
    texts = _Texts(worker, unedited).of(compress(_entries(ledger), written))
    summary, verdicts = Summary(), Means((*VERDICT_COLUMNS, "chat_retention"))
    with EditsFile(path) as file, progress.bar("evaluating", len(standing.applied)) as advance:
        entries = zip(_entries(ledger), standing.overwritten, evaluated & config.eval, written, strict=True)
        rows = (EditRow(e, bool(o), next(results) if r else None, next(texts) if t else None) for e, o, r, t in entries)
        while chunk := list(islice(rows, _CHUNK)):
            file.write(chunk)
            for row in chunk:
                if row.stands and row.result:
                    summary.add(row.result)
                if row.stands and row.generated:
                    verdicts.add_values(row.verdicts)
            advance(len(chunk))
    counts = {
        **_perplexity(unedited, config, progress),
        "generated": verdicts.count,
        "evaluated": summary.count,
        "overwritten": int(standing.overwritten.sum()),
    }
    return {**summary.means(), **{name: mean for name, mean in verdicts.means().items() if mean is not None}, **counts}


def _perplexity(unedited: UneditedAnswers, config: RunConfig, progress: Progress) -> dict[str, float]:
    """Perplexity of the text that nothing holds, before and now, if the run is measured at all."""
    passages = read_passages(config.perplexity_text) if config.eval else []
    if not passages:
        return {}
    with progress.spinner("measuring perplexity"):
        return dict(zip(("perplexity_before", "perplexity"), unedited.perplexities(passages), strict=True))


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


def _results(worker: Worker, unedited: UneditedAnswers, entries: Iterable[Entry]) -> Iterator[EditResult]:
    tokenizer = RequestTokenizer.of(worker)
    for chunk in _chunks(entries, worker.edits_at_a_time):
        yield from unedited.evaluate([tokenizer.tokenize(entry.request, entry.record) for entry in chunk])


class _Texts:
    """Has the model write for some edits: as they are typed and, where it has a template, in chat."""

    def __init__(self, worker: Worker, unedited: UneditedAnswers) -> None:
        self._worker, self._unedited = worker, unedited
        joiner = worker.joiner
        self._in_chat = RequestTokenizer(joiner.framed(CHAT), worker.max_tokens) if has_template(joiner.tokenizer) else None

    def of(self, entries: Iterable[Entry]) -> Iterator[Generated]:
        """What the model writes for each entry."""
        for chunk in _chunks(entries, self._worker.edits_at_a_time):
            raw = self._answers([entry for entry in chunk if not entry.request.messages], RAW, RAW_TOKENS)
            typed = (None if entry.request.messages else next(raw) for entry in chunk)
            if self._in_chat is None:
                yield from map(Generated, typed)
            else:
                yield from map(Generated, typed, self._answers(chunk, CHAT, CHAT_TOKENS), self._retained(chunk, self._in_chat))

    def _answers(self, chunk: Sequence[Entry], framing: str, tokens: int) -> Iterator[Answers]:
        prompts = [entry.request.asked for entry in chunk]
        before = self._unedited.write(prompts, framing=framing, max_new_tokens=tokens)
        rephrased = {k: entry.request.rephrase for k, entry in enumerate(chunk) if entry.request.rephrase}
        # both at once: it may have to read the model
        after = self._worker.write([*prompts, *rephrased.values()], framing=framing, max_new_tokens=tokens)
        in_other_words = dict(zip(rephrased, after[len(prompts) :], strict=True))
        return (Answers(after[k], in_other_words.get(k), before[k]) for k in range(len(chunk)))

    def _retained(self, chunk: Sequence[Entry], tokenizer: RequestTokenizer) -> list[bool | None]:
        """Whether each entry's locality probe is retained in chat; ``None`` where it has none, or is too long in chat."""
        probes = ((k, entry, entry.request.locality_prompt) for k, entry in enumerate(chunk))
        asked = {k: _in_chat(tokenizer, entry, prompt) for k, entry, prompt in probes if prompt is not None}
        fitting = {k: edit for k, edit in asked.items() if not isinstance(edit, BadRecord)}
        results = self._unedited.evaluate(list(fitting.values())) if fitting else []
        retained = {k: result.locality_retained for k, result in zip(fitting, results, strict=True)}
        return [retained.get(k) for k in range(len(chunk))]


def _in_chat(tokenizer: RequestTokenizer, entry: Entry, prompt: str) -> TokenizedEdit | BadRecord:
    """An edit with its locality probe, which is what is asked for here, and no other."""
    request = EditRequest(prompt, entry.request.target, locality_prompt=prompt, locality_answer=entry.request.locality_answer)
    return tokenizer.tokenize_record(NumberedRequest(entry.record, request))


def _entries(ledger: Ledger) -> Iterator[Entry]:
    return (entry for entry in ledger if not entry.rolled_back)


def _chunks(items: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
