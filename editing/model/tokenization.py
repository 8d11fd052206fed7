"""Requests to token ids, and token ids to padded batches.

How a prompt and its answer meet is decided in :mod:`editing.model.joining`. The answer's last token is not fed. The position
that *predicts* an answer token is a row: a sequence with ``A`` answer tokens has ``A`` rows, its last ``A`` positions. Where
the subject of an edit stands in its prompt, the subject's last token is a row of another kind (:data:`editing.method.rows.Site`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

from editing.config import DEFAULT_BATCH_TOKENS
from editing.errors import InvalidRequest
from editing.messages import Asked
from editing.method.rows import SITES, Site
from editing.model.decoder import Precedes
from editing.model.joining import Joined, Joiner

_MAX_PADDING = 0.08
"""Largest share of a batch that may be padding before a new batch is started."""

_PRECEDED = 4
"""With the tokens before its sequences, of which there are keys and values alone, a batch may have so many times as many."""


@dataclass(frozen=True, slots=True)
class AnswerSequence:
    """A prompt with its answer, ready to be fed.

    Attributes:
        input_ids: Prompt ids, then the answer's ids but the last.
        answer_ids: The token that each row shall predict.
        subject: Position of the subject's last token in ``input_ids``; ``None`` if there is no subject, or not in the prompt.
        whole: Whether prompt and answer encoded together, as typed, are these tokens.
    """

    input_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    subject: int | None = None
    whole: bool = True

    @property
    def first_row(self) -> int:
        """Position of the first row in ``input_ids``."""
        return len(self.input_ids) - len(self.answer_ids)

    @property
    def num_before_rows(self) -> int:
        """Tokens before its first row at any site."""
        return self.first_row if self.subject is None else min(self.first_row, self.subject)

    def after(self, length: int) -> "AnswerSequence":
        """What follows its first ``length`` tokens, none of which is a row."""
        return replace(self, input_ids=self.input_ids[length:], subject=None if self.subject is None else self.subject - length)

    def rows(self, site: Site) -> range:
        """Positions of the rows at a site in ``input_ids``."""
        if site == "answer":
            return range(self.first_row, len(self.input_ids))
        return range(0) if self.subject is None else range(self.subject, self.subject + 1)


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded sequences of similar length.

    Attributes:
        indices: Which sequences of the caller's list these are.
        input_ids: ``(B, T)`` int64.
        rows: ``(n,)`` int64, flat positions ``b * T + t`` of the rows, sequence by sequence.
        row_ids: ``(n,)`` int64, the same rows' numbers in the caller's list of sequences laid end to end.
        labels: ``(n,)`` int64, the token that each row shall predict.
        subjects: ``(s,)`` int64, flat positions of the subjects' last tokens, sequence by sequence.
        subject_ids: ``(s,)`` int64, the same rows' numbers in the caller's list of sequences laid end to end.
        tokens: ``(t,)`` int64, flat positions of all tokens that are no pads, sequence by sequence.
        token_ids: ``(t,)`` int64, the same tokens' numbers in the caller's list of sequences laid end to end.
        past: What precedes the tokens, where sequences are continued; or that the batch is a beginning itself, which others will continue.
    """

    indices: tuple[int, ...]
    input_ids: Tensor
    rows: Tensor
    row_ids: Tensor
    labels: Tensor
    subjects: Tensor
    subject_ids: Tensor
    tokens: Tensor
    token_ids: Tensor
    past: Precedes | None = None

    @property
    def has_rows(self) -> bool:
        """Whether it holds sequences; a beginning alone has no rows."""
        return bool(self.indices)

    def at(self, site: Site) -> tuple[Tensor, Tensor]:
        """Flat positions of the rows at a site, and their numbers."""
        return (self.rows, self.row_ids) if site == "answer" else (self.subjects, self.subject_ids)


def encode(
    tokenizer: Any,
    prompt: Asked,
    answer: str | None,
    *,
    subject: str | None = None,
    max_tokens: int | None = None,
    prompt_field: str = "prompt",
    answer_field: str = "target",
) -> AnswerSequence:
    """Tokenize one prompt and its answer.

    Args:
        tokenizer: A joiner, or a Hugging Face tokenizer for the default one.
        prompt: Text before the answer, or a chat that it ends.
        answer: Answer text; ``None`` gives one row, the first token after the prompt.
        subject: What the prompt is about, if its place is wanted.
        max_tokens: The model's context length, or ``None`` for no limit.
        prompt_field: Name of the prompt's field, for errors.
        answer_field: Name of the answer's field, for errors.

    Raises:
        InvalidRequest: The answer or the prompt gives no token, or one that the model has no embedding for, or both together exceed
            ``max_tokens``; or the model has no chat template that writes a chat.
    """
    joiner, prompt = Joiner.of(tokenizer).asking(prompt)
    joined = Joined(joiner.prompt_ids(prompt), (0,), True) if answer is None else joiner.joined(prompt, answer)
    for field, text, ids in ((answer_field, answer, joined.answer_ids), (prompt_field, prompt, joined.prompt_ids)):
        if not ids:
            raise InvalidRequest(field, f"{text!r} gives no token with this model's tokenizer")
        if (unknown := joiner.without_embedding(ids)) is not None:
            raise InvalidRequest(field, _no_embedding(joiner, unknown))
    place = _last_token(joiner, prompt, subject) if subject else None
    sequence = AnswerSequence(joined.prompt_ids + joined.answer_ids[:-1], joined.answer_ids, place, joined.whole)
    if max_tokens is not None and len(sequence.input_ids) > max_tokens:
        raise InvalidRequest(prompt_field, f"is {len(sequence.input_ids)} tokens long with its answer; the model's context holds {max_tokens}")
    return sequence


def _no_embedding(joiner: Joiner, token: int) -> str:
    name = joiner.tokenizer.convert_ids_to_tokens(token)
    return f"holds {name!r}, token {token} of the tokenizer; the model has embeddings for the tokens below {joiner.num_embeddings} only"


def _last_token(joiner: Joiner, prompt: str, subject: str) -> int | None:
    """Position of a subject's last token in its prompt."""
    span = joiner.place(prompt, subject)
    return None if span is None else joiner.last_token(prompt, span[1])


def row_offsets(sequences: Iterable[AnswerSequence], site: Site = "answer") -> list[int]:
    """Number of the first row of each sequence when all rows at a site are laid end to end, and the total at the end."""
    return [0, *accumulate(len(sequence.rows(site)) for sequence in sequences)]


def token_offsets(sequences: Sequence[AnswerSequence]) -> list[int]:
    """As :func:`row_offsets`, for all tokens."""
    return [0, *accumulate(len(sequence.input_ids) for sequence in sequences)]


def batches(
    sequences: Sequence[AnswerSequence],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    device: torch.device | str = "cpu",
    parts: Iterable[Iterable[int]] | None = None,
    before: int = 0,
    starts: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Cut sequences into right-padded batches of similar length.

    Decoders are causal, so a pad at the right is never seen by a real token and no attention mask is needed.

    Args:
        sequences: The sequences.
        batch_tokens: Padded tokens in one batch.
        device: Where the batches go.
        parts: Which sequences are of a part, for parts that share no batch; by default all are of one. The last bits of a matrix
            product's row depend on how many rows there are, so what a part gives does not depend on the others.
        before: Tokens that precede each sequence. They do not run, but their keys and values take room.
        starts: Numbers of the sequences' first tokens; by default as if all were laid end to end.
    """
    offsets = tuple(row_offsets(sequences, site) for site in SITES)
    starts, lengths = starts or token_offsets(sequences), [len(s.input_ids) for s in sequences]
    for part in parts if parts is not None else [range(len(sequences))]:
        for indices in _plan(part, lengths, batch_tokens, before):
            yield _collate(sequences, indices, offsets, starts, device)


def _plan(part: Iterable[int], lengths: Sequence[int], batch_tokens: int, before: int) -> Iterator[tuple[int, ...]]:
    order = sorted(part, key=lambda i: -lengths[i])
    bucket: list[int] = []
    used = 0
    for i in order:
        width = lengths[bucket[0]] if bucket else lengths[i]
        padded = width * (len(bucket) + 1)
        is_full = padded > batch_tokens or padded + before * (len(bucket) + 1) > _PRECEDED * batch_tokens
        if bucket and (is_full or (padded - used - lengths[i]) > _MAX_PADDING * padded):
            yield tuple(bucket)
            bucket, used = [], 0
        bucket.append(i)
        used += lengths[i]
    if bucket:
        yield tuple(bucket)


def _collate(
    sequences: Sequence[AnswerSequence], indices: tuple[int, ...], offsets: Sequence[list[int]], starts: Sequence[int], device: torch.device | str
) -> Batch:
    width = max(len(sequences[i].input_ids) for i in indices)
    input_ids: list[int] = []
    labels: list[int] = []
    rows: dict[Site, list[int]] = {site: [] for site in SITES}
    row_ids: dict[Site, list[int]] = {site: [] for site in SITES}
    tokens: list[int] = []
    token_ids: list[int] = []
    for b, i in enumerate(indices):
        sequence = sequences[i]
        input_ids += (*sequence.input_ids, *[0] * (width - len(sequence.input_ids)))
        for site, lines in zip(SITES, offsets, strict=True):
            rows[site] += (b * width + position for position in sequence.rows(site))
            row_ids[site] += range(lines[i], lines[i + 1])
        labels += sequence.answer_ids
        tokens += range(b * width, b * width + len(sequence.input_ids))
        token_ids += range(starts[i], starts[i] + len(sequence.input_ids))
    numbers = (input_ids, rows["answer"], row_ids["answer"], labels, rows["subject"], row_ids["subject"], tokens, token_ids)
    together = torch.tensor([*chain.from_iterable(numbers)], dtype=torch.int64).to(device)  # one copy to an accelerator
    ids, *others = together.split([len(values) for values in numbers])
    return Batch(indices, ids.view(len(indices), width), *others)
