"""Candidates of a search, tried one after another on one loaded model, which is the unedited one again after each."""

import hashlib
import heapq
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from editing import Editor, EditorConfig, InputError, TurnRefused
from editing.datasets import BadRecord, EditFile, NumberedRequest
from editing.model.decoder import Decoder
from editing.model.prefix import Prefixed
from editing.monitoring.evaluation import Owners, Predictions, predict_prefixed, run_probe_prefix, score, summarize
from editing.turn import PreparedTurn, TokenizedEdit, in_turns
from orchestrator.tokenizing import RequestTokenizer
from orchestrator.tune.search import Candidate

logger = logging.getLogger("ultraedit")


@dataclass(frozen=True, slots=True)
class _ProbedEdits:
    """Probes of some edits whose prefix has been run, with the unedited model's predictions."""

    owners: Owners
    prefixed: Prefixed
    before: Predictions


T = TypeVar("T")


class _SharedPrefix(Generic[T]):
    """What the frozen layers compute for the first edits of the sample. Candidates with the same lowest layer share it; the latest is kept."""

    def __init__(self, compute: Callable[[Editor, int], T]) -> None:
        self._compute = compute
        self._kept: dict[int, tuple[int, T]] = {}

    def get(self, editor: Editor, num_edits: int) -> T:
        """What was computed for so many edits; computed now, if it was not, with an editor that has not edited yet."""
        if num_edits not in self._kept or self._kept[num_edits][0] != editor.start:
            self._kept[num_edits] = editor.start, self._compute(editor, num_edits)
        return self._kept[num_edits][1]


class Trials:
    """A model on which candidates are tried.

    Args:
        model: The model. It is edited, and restored to the bit after every trial.
        tokenizer: Its tokenizer.
        edits: The sample, in random order: a trial of n edits takes the first n.
        edits_per_turn: Edits that share one shift.
    """

    def __init__(self, model: Any, tokenizer: Any, edits: Sequence[TokenizedEdit], *, edits_per_turn: int = EditorConfig.edits_per_turn) -> None:
        self._model, self._tokenizer, self._edits, self._edits_per_turn = model, tokenizer, list(edits), edits_per_turn
        self._decoder = Decoder(model)
        self._turns = _SharedPrefix(self._prepare)
        self._probes = _SharedPrefix(self._probe)

    def rate(self, candidate: Candidate) -> float:
        """The learning rate at which the first full turn of the sample shifts the candidate's modules by its strength.

        Raises:
            TurnRefused: The turn's numbers are not finite.
        """
        with self._editing(candidate, 1.0) as editor:
            squares = sum(float(torch.linalg.vector_norm(weight, dtype=torch.float32)) ** 2 for weight in editor.weights.values())
            report = editor.apply_turn(self._turns.get(editor, min(len(self._edits), self._edits_per_turn))[0], measure=False)
            shift = sum(norm**2 for norm in report.shift_norms.values()) ** 0.5
            return float(candidate.strength * squares**0.5 / shift)

    def measure(self, candidate: Candidate, learning_rate: float, num_edits: int) -> dict[str, float | None]:
        """Means over the first edits of the sample once all of them are made; empty if a turn was refused."""
        with self._editing(candidate, learning_rate) as editor:
            turns, probed = self._turns.get(editor, num_edits), self._probes.get(editor, num_edits)
            try:
                for turn in turns:
                    editor.apply_turn(turn, measure=False)
            except TurnRefused as error:
                logger.warning("%s, %d edits: %s", candidate.name, num_edits, error)
                return {}
            after = predict_prefixed(editor, probed.owners, probed.prefixed, num_edits)
        return summarize(score(self._edits[:num_edits], after, probed.before))

    @contextmanager
    def _editing(self, candidate: Candidate, learning_rate: float) -> Iterator[Editor]:
        config = EditorConfig(modules=candidate.modules, learning_rate=learning_rate, edits_per_turn=self._edits_per_turn, **candidate.options)
        editor = Editor(self._model, self._tokenizer, config, decoder=self._decoder)
        try:
            yield editor
        finally:
            editor.restore()

    def _prepare(self, editor: Editor, num_edits: int) -> list[PreparedTurn]:
        return editor.prepare(list(in_turns(self._edits[:num_edits], self._edits_per_turn)))

    def _probe(self, editor: Editor, num_edits: int) -> _ProbedEdits:
        owners, prefixed = run_probe_prefix(self._decoder, self._edits[:num_edits], editor.start, editor.config.batch_tokens)
        return _ProbedEdits(owners, prefixed, predict_prefixed(editor, owners, prefixed, num_edits))


def draw_sample(source: EditFile, tokenizer: Any, count: int, *, seed: int, max_tokens: int | None) -> list[TokenizedEdit]:
    """A uniform sample of a file's edits in random order, at constant memory; the same for the same seed.

    Bad records, repeated prompts and edits that do not fit the model are left out, so there may be fewer than ``count``.

    Raises:
        InputError: The file cannot be read or has no usable edit.
    """
    tokenizing, unusable = RequestTokenizer(tokenizer, max_tokens), _UnusableRecords()
    drawn = heapq.nsmallest(count, unusable.taken_out_of(source), key=lambda r: hashlib.blake2b(f"{seed}:{r.number}".encode()).digest())
    edits: dict[str, TokenizedEdit] = {}
    for record in drawn:
        if (question := record.request.question) in edits:
            continue
        edit = tokenizing.tokenize_record(record)
        if isinstance(edit, BadRecord):
            unusable.add(edit)
        else:
            edits[question] = edit
    if not edits:
        raise InputError(f"{source.path}: holds no usable edit{unusable.first and f'; {unusable.first}'}")
    if unusable.count:
        logger.warning("%d records cannot be used; %s", unusable.count, unusable.first)
    return list(edits.values())


class _UnusableRecords:
    """How many records cannot be used, and why the first of them cannot."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""

    def add(self, bad: BadRecord) -> None:
        self.count += 1
        self.first = self.first or f"record {bad.number}: {bad.reason}"

    def taken_out_of(self, records: Iterable[NumberedRequest | BadRecord]) -> Iterator[NumberedRequest]:
        """The other records; the unusable ones are counted."""
        for record in records:
            if isinstance(record, BadRecord):
                self.add(record)
            else:
                yield record
