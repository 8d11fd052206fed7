"""Candidates of a search, tried one after another on one loaded model, which is the unedited one again after each."""

import hashlib
import heapq
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from editing import Editor, InputError, TurnRefused
from editing.datasets import BadRecord, EditFile, NumberedRequest
from editing.decoder import Decoder
from editing.editor import EditorConfig
from editing.errors import InvalidRequest
from editing.evaluation import Owners, Predictions, predict_prefixed, run_probe_prefix, score, summarize
from editing.prefix import Prefixed
from editing.turn import PreparedTurn, TokenizedEdit, in_turns, tokenize
from orchestrator.tuning import Candidate

logger = logging.getLogger("ultraedit")


@dataclass(frozen=True, slots=True)
class _Shared:
    """What candidates of one lowest layer share for one number of edits: all that the frozen layers compute."""

    start: int
    num_edits: int
    turns: list[PreparedTurn]
    owners: Owners
    probes: Prefixed
    before: Predictions


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
        self._shared: _Shared | None = None

    def rate(self, candidate: Candidate) -> float:
        """The learning rate at which the first full turn of the sample shifts the candidate's modules by its strength.

        Raises:
            TurnRefused: The turn's numbers are not finite.
        """
        with self._editing(candidate, 1.0) as editor:
            squares = sum(float(torch.linalg.vector_norm(weight, dtype=torch.float32)) ** 2 for weight in editor.weights().values())
            report = editor.apply_turn(self._share(editor, min(len(self._edits), self._edits_per_turn)).turns[0], measure=False)
            shift = sum(norm**2 for norm in report.shift_norms.values()) ** 0.5
            return float(candidate.strength * squares**0.5 / shift)

    def measure(self, candidate: Candidate, learning_rate: float, num_edits: int) -> dict[str, float | None]:
        """Means over the first edits of the sample once all of them are made; empty if a turn was refused."""
        with self._editing(candidate, learning_rate) as editor:
            shared = self._share(editor, num_edits)
            try:
                for turn in shared.turns:
                    editor.apply_turn(turn, measure=False)
            except TurnRefused as error:
                logger.warning("%s, %d edits: %s", candidate.name, num_edits, error)
                return {}
            after = predict_prefixed(editor, shared.owners, shared.probes, num_edits)
        return summarize(score(self._edits[:num_edits], after, shared.before))

    @contextmanager
    def _editing(self, candidate: Candidate, learning_rate: float) -> Iterator[Editor]:
        config = EditorConfig(modules=candidate.modules, learning_rate=learning_rate, edits_per_turn=self._edits_per_turn, **candidate.options)
        editor = Editor(self._model, self._tokenizer, config, decoder=self._decoder)
        try:
            yield editor
        finally:
            editor.restore()

    def _share(self, editor: Editor, num_edits: int) -> _Shared:
        """Kept for the next candidate, which most often has the same lowest layer. The editor has not edited yet."""
        kept = self._shared
        if kept is None or (kept.start, kept.num_edits) != (editor.start, num_edits):
            edits = self._edits[:num_edits]
            turns = editor.prepare(list(in_turns(edits, self._edits_per_turn)))
            owners, probes = run_probe_prefix(self._decoder, edits, editor.start, editor.config.batch_tokens)
            before = predict_prefixed(editor, owners, probes, num_edits)
            self._shared = kept = _Shared(editor.start, num_edits, turns, owners, probes, before)
        return kept


def draw(source: EditFile, tokenizer: Any, count: int, *, seed: int, max_tokens: int | None) -> list[TokenizedEdit]:
    """A uniform sample of a file's edits in random order, at constant memory; the same for the same seed.

    Bad records, repeated prompts and edits that do not fit the model are left out, so that there may be fewer than asked for.

    Raises:
        InputError: The file cannot be read or has no usable edit.
    """
    left_out = _LeftOut()

    def usable() -> Iterator[NumberedRequest]:
        for record in source:
            if isinstance(record, BadRecord):
                left_out.add(record.number, record.reason)
            else:
                yield record

    drawn = heapq.nsmallest(count, usable(), key=lambda r: hashlib.blake2b(f"{seed}:{r.number}".encode()).digest())
    edits: dict[str, TokenizedEdit] = {}
    for record in drawn:
        try:
            if record.request.prompt not in edits:
                edits[record.request.prompt] = tokenize(tokenizer, record.request, max_tokens=max_tokens, record=record.number)
        except InvalidRequest as error:
            left_out.add(record.number, str(error))
    if not edits:
        raise InputError(f"{source.path}: holds no usable edit{left_out.first and f'; {left_out.first}'}")
    if left_out.count:
        logger.warning("%d records cannot be used; %s", left_out.count, left_out.first)
    return list(edits.values())


class _LeftOut:
    """How many records were left out, and why the first of them was."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""

    def add(self, number: int, reason: str) -> None:
        self.count += 1
        self.first = self.first or f"record {number}: {reason}"
