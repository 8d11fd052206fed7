"""Requests to token ids, and token ids to padded batches.

An answer is ``" " + text``, tokenized without special tokens and appended to the prompt's ids; its last token is not
fed. The position that *predicts* an answer token is a row: a sequence with ``A`` answer tokens has ``A`` rows, its last
``A`` positions.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from editing.errors import InvalidRequest
from editing.parts import consecutive

DEFAULT_BATCH_TOKENS = 2048
"""Padded tokens in one physical batch: large enough for full matrix-multiply speed on a CPU, small in memory."""

_MAX_PADDING = 0.08
"""Largest share of a batch that may be padding before a new batch is started."""


@dataclass(frozen=True, slots=True)
class AnswerSequence:
    """A prompt with its answer, ready to be fed.

    Attributes:
        input_ids: Prompt ids, then the answer's ids but the last.
        answer_ids: The token that each row shall predict.
    """

    input_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    @property
    def first_row(self) -> int:
        """Position of the first row in ``input_ids``."""
        return len(self.input_ids) - len(self.answer_ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded sequences of similar length.

    Attributes:
        indices: Which sequences of the caller's list these are.
        input_ids: ``(B, T)`` int64.
        rows: ``(n,)`` int64, flat positions ``b * T + t`` of the rows, sequence by sequence.
        row_ids: ``(n,)`` int64, the same rows' numbers in the caller's list of sequences laid end to end.
        labels: ``(n,)`` int64, the token that each row shall predict.
        tokens: ``(t,)`` int64, flat positions of all tokens that are no pads, sequence by sequence.
        token_ids: ``(t,)`` int64, the same tokens' numbers in the caller's list of sequences laid end to end.
    """

    indices: tuple[int, ...]
    input_ids: Tensor
    rows: Tensor
    row_ids: Tensor
    labels: Tensor
    tokens: Tensor
    token_ids: Tensor


def encode(
    tokenizer: Any,
    prompt: str,
    answer: str | None,
    *,
    max_tokens: int | None = None,
    prompt_field: str = "prompt",
    answer_field: str = "target",
) -> AnswerSequence:
    """Tokenize one prompt and its answer.

    Args:
        tokenizer: A Hugging Face tokenizer.
        prompt: Text before the answer; special tokens are added as the tokenizer does.
        answer: Answer text without its leading space; ``None`` gives one row, the first token after the prompt.
        max_tokens: The model's context length, or ``None`` for no limit.
        prompt_field: Name of the prompt's field, for errors.
        answer_field: Name of the answer's field, for errors.

    Raises:
        InvalidRequest: The answer or the prompt gives no token, or both together exceed ``max_tokens``.
    """
    prompt_ids = tokenizer(prompt)["input_ids"]
    answer_ids = [0] if answer is None else tokenizer(" " + answer, add_special_tokens=False)["input_ids"]
    if not answer_ids:
        raise InvalidRequest(answer_field, f"{answer!r} gives no token with this model's tokenizer")
    if not prompt_ids:
        raise InvalidRequest(prompt_field, f"{prompt!r} gives no token with this model's tokenizer")
    sequence = AnswerSequence(tuple(prompt_ids) + tuple(answer_ids[:-1]), tuple(answer_ids))
    if max_tokens is not None and len(sequence.input_ids) > max_tokens:
        raise InvalidRequest(prompt_field, f"is {len(sequence.input_ids)} tokens long with its answer; the model's context holds {max_tokens}")
    return sequence


def row_offsets(sequences: Iterable[AnswerSequence]) -> list[int]:
    """Number of the first row of each sequence when all rows are laid end to end, and the total at the end."""
    offsets = [0]
    for sequence in sequences:
        offsets.append(offsets[-1] + len(sequence.answer_ids))
    return offsets


def token_offsets(sequences: Sequence[AnswerSequence]) -> list[int]:
    """As :func:`row_offsets`, for all tokens."""
    return [0, *accumulate(len(sequence.input_ids) for sequence in sequences)]


def batches(
    sequences: Sequence[AnswerSequence],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    device: torch.device | str = "cpu",
    apart: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Cut sequences into right-padded batches of similar length.

    Decoders are causal, so a pad at the right is never seen by a real token and no attention mask is needed.

    Args:
        sequences: The sequences.
        batch_tokens: Padded tokens in one batch.
        device: Where the batches go.
        apart: Lengths of consecutive parts of the sequences that share no batch. The last bits of a matrix product's row depend
            on how many rows there are, so what a part gives does not depend on the others.
    """
    offsets, starts, lengths = row_offsets(sequences), token_offsets(sequences), [len(s.input_ids) for s in sequences]
    for part in consecutive(apart or [len(sequences)]):
        for indices in _plan(part, lengths, batch_tokens):
            yield _collate(sequences, indices, offsets, starts, device)


def _plan(part: range, lengths: Sequence[int], batch_tokens: int) -> Iterator[tuple[int, ...]]:
    order = sorted(part, key=lambda i: -lengths[i])
    bucket: list[int] = []
    used = 0
    for i in order:
        width = lengths[bucket[0]] if bucket else lengths[i]
        padded = width * (len(bucket) + 1)
        if bucket and (padded > batch_tokens or (padded - used - lengths[i]) > _MAX_PADDING * padded):
            yield tuple(bucket)
            bucket, used = [], 0
        bucket.append(i)
        used += lengths[i]
    if bucket:
        yield tuple(bucket)


def _collate(
    sequences: Sequence[AnswerSequence], indices: tuple[int, ...], offsets: list[int], starts: list[int], device: torch.device | str
) -> Batch:
    width = max(len(sequences[i].input_ids) for i in indices)
    input_ids = torch.zeros(len(indices), width, dtype=torch.long)
    rows: list[int] = []
    row_ids: list[int] = []
    labels: list[int] = []
    tokens: list[int] = []
    token_ids: list[int] = []
    for b, i in enumerate(indices):
        sequence = sequences[i]
        input_ids[b, : len(sequence.input_ids)] = torch.tensor(sequence.input_ids)
        rows += range(b * width + sequence.first_row, b * width + len(sequence.input_ids))
        row_ids += range(offsets[i], offsets[i + 1])
        labels += sequence.answer_ids
        tokens += range(b * width, b * width + len(sequence.input_ids))
        token_ids += range(starts[i], starts[i + 1])
    numbers = (rows, row_ids, labels, tokens, token_ids)
    return Batch(indices, input_ids.to(device), *(torch.tensor(values, device=device) for values in numbers))
