"""Hidden states at the border between prefix and suffix, computed once for many sequences and kept without padding.

The prefix holds no edited module, so what it computes stays exact whatever happens to the suffix: coming turns can go
through it together, and an evaluation can reuse it for the edited and the unedited model.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from editing.model.decoder import Decoder
from editing.model.hidden_store import Shelf
from editing.model.matmul import full_speed
from editing.model.tokenization import AnswerSequence, Batch, batches

Carried = Iterable[tuple[Batch, Tensor | None]]
"""Batches with what the next layer receives for each, ``(B, T, d)``; ``None`` before layer 0."""


@dataclass(frozen=True, slots=True)
class Prefixed:
    """Sequences with what the suffix's first layer receives for them.

    Attributes:
        sequences: The sequences.
        hidden: ``(len, d)`` for each of them; ``None`` if the suffix begins at layer 0 and there is no prefix.
    """

    sequences: Sequence[AnswerSequence]
    hidden: Shelf | None

    def select(self, indices: Sequence[int]) -> "Prefixed":
        """The given sequences alone."""
        return Prefixed([self.sequences[i] for i in indices], None if self.hidden is None else self.hidden.select(indices))

    @classmethod
    def join(cls, parts: Sequence["Prefixed"]) -> "Prefixed":
        """The sequences of all parts, which have run through the same prefix."""
        shelves = [p.hidden for p in parts if p.hidden is not None]
        return cls([s for p in parts for s in p.sequences], Shelf.join(shelves) if shelves else None)

    def detached(self) -> "Prefixed":
        """The same with hidden states of its own, not views that keep a large batch in memory."""
        return Prefixed(self.sequences, None if self.hidden is None else self.hidden.detached())

    def batches(self, *, batch_tokens: int, device: torch.device) -> Iterator[tuple[Batch, Tensor | None]]:
        """Right-padded batches with their hidden states ``(B, T, d)``, zero at the pads."""
        for batch in batches(self.sequences, batch_tokens=batch_tokens, device=device):
            if self.hidden is None:
                yield batch, None
            else:
                yield batch, pad_sequence([self.hidden.get(i) for i in batch.indices], batch_first=True).to(device, non_blocking=True)


def run_layers(decoder: Decoder, inputs: Carried, first: int, stop: int) -> Iterator[tuple[Batch, Tensor]]:
    """Run layers ``first .. stop - 1`` over batches, layer by layer where not all layers are in memory at once.

    Args:
        decoder: The model.
        inputs: Batches with what layer ``first`` receives.
        first: First layer that runs.
        stop: Layer after the last one.

    Yields:
        Each batch with what comes out, as of :meth:`Decoder.span`. Ask for all of them, or close the generator.
    """
    with closing(decoder.residency.segments(first, stop)) as segments:
        for segment in segments:
            outputs = run_segment(decoder, inputs, segment)
            if segment.stop == stop:
                yield from outputs
            else:
                inputs = PutAside(decoder, outputs)


class PutAside:
    """Batches with their hidden states put aside until the next segment of layers asks for them, as often as it likes."""

    def __init__(self, decoder: Decoder, outputs: Iterable[tuple[Batch, Tensor]]) -> None:
        self._device, self._shelf = decoder.device, decoder.residency.shelf()
        self._batches: list[Batch] = []
        for k, (batch, hidden) in enumerate(outputs):
            self._shelf.put(k, hidden)
            self._batches.append(batch)

    def __iter__(self) -> Iterator[tuple[Batch, Tensor]]:
        for k, batch in enumerate(self._batches):
            yield batch, self._shelf.get(k).to(self._device, non_blocking=True)


@torch.no_grad()
def run_segment(decoder: Decoder, inputs: Carried, layers: range) -> Iterator[tuple[Batch, Tensor]]:
    """Run one segment over batches, without a graph. Its weights are in place."""
    for batch, hidden in inputs:
        with full_speed(decoder.device):
            output = decoder.span(batch.input_ids, hidden, layers.start, layers.stop)
        yield batch, output


def run_prefix(
    decoder: Decoder, sequences: Sequence[AnswerSequence], *, stop: int, batch_tokens: int, apart: Sequence[int] | None = None
) -> Prefixed:
    """Run layers ``0 .. stop - 1`` over sequences, in batches of similar length; ``apart`` as for :func:`editing.model.tokenization.batches`."""
    if stop == 0:
        return Prefixed(sequences, None)
    hidden = decoder.residency.shelf()
    inputs = ((batch, None) for batch in batches(sequences, batch_tokens=batch_tokens, device=decoder.device, apart=apart))
    for batch, output in run_layers(decoder, inputs, 0, stop):
        for b, i in enumerate(batch.indices):
            hidden.put(i, output[b, : len(sequences[i].input_ids)])
    return Prefixed(sequences, hidden)


@torch.no_grad()
def predict(decoder: Decoder, prefixed: Prefixed, *, start: int, batch_tokens: int) -> list[tuple[int, ...]]:
    """The model's likeliest token at every row, sequence by sequence, teacher-forced."""
    predictions: list[tuple[int, ...]] = [()] * len(prefixed.sequences)
    inputs = prefixed.batches(batch_tokens=batch_tokens, device=decoder.device)
    for batch, final in run_layers(decoder, inputs, start, decoder.num_layers):
        likeliest = torch.cat([logits.argmax(-1) for logits in _row_logits(decoder, batch, final)]).tolist()
        offset = 0
        for i in batch.indices:
            count = len(prefixed.sequences[i].answer_ids)
            predictions[i] = tuple(likeliest[offset : offset + count])
            offset += count
    return predictions


@torch.no_grad()
def perplexity(decoder: Decoder, prefixed: Prefixed, *, start: int, batch_tokens: int) -> float:
    """Exponential of the mean cross-entropy over all rows of all sequences."""
    losses: list[Tensor] = []
    inputs = prefixed.batches(batch_tokens=batch_tokens, device=decoder.device)
    for batch, final in run_layers(decoder, inputs, start, decoder.num_layers):
        parts = decoder.head_chunks(len(batch.labels))
        for logits, part in zip(_row_logits(decoder, batch, final), parts, strict=True):
            losses.append(F.cross_entropy(logits.float(), batch.labels[part], reduction="none"))
    return float(torch.cat(losses).double().mean().exp())


def _row_logits(decoder: Decoder, batch: Batch, final: Tensor) -> Iterator[Tensor]:
    """Logits of a batch's rows, a chunk at a time, given its final hidden states."""
    with full_speed(decoder.device):
        rows = final.flatten(0, 1)[batch.rows]
        for part in decoder.head_chunks(len(rows)):
            yield decoder.logits(rows[part])
