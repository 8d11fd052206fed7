"""Hidden states between prefix and suffix, computed once for many sequences and kept without padding.

The prefix holds no edited module, so its output stays exact whatever happens to the suffix. Coming turns can go through it
together, and an evaluation can use it for both the edited and the unedited model.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from editing.config import PrefixDType
from editing.model.beginnings import After, Beginning, Part, beginning_batch, shared, whole
from editing.model.decoder import Decoder, Precedes
from editing.model.hidden_store import HiddenStore
from editing.model.matmul import full_speed
from editing.model.tokenization import AnswerSequence, Batch, batches, token_offsets

LayerInputs = Iterable[tuple[Batch, Tensor | None]]
"""Batches with the hidden states ``(B, T, d)`` that the next layer receives; ``None`` before layer 0."""


@dataclass(frozen=True, slots=True)
class Prefixed:
    """Sequences with the hidden states that the first layer of the suffix receives for them.

    Attributes:
        sequences: The sequences.
        hidden: ``(len, d)`` for each of them; ``None`` if the suffix begins at layer 0 and there is no prefix.
    """

    sequences: Sequence[AnswerSequence]
    hidden: HiddenStore | None

    def select(self, indices: Sequence[int]) -> "Prefixed":
        """The given sequences only."""
        return Prefixed([self.sequences[i] for i in indices], None if self.hidden is None else self.hidden.select(indices))

    @classmethod
    def concatenate(cls, several: Sequence["Prefixed"]) -> "Prefixed":
        """All sequences of several, which have gone through the same prefix."""
        stores = [prefixed.hidden for prefixed in several if prefixed.hidden is not None]
        return cls([s for prefixed in several for s in prefixed.sequences], HiddenStore.concatenate(stores) if stores else None)

    def copied(self) -> "Prefixed":
        """The same with own copies of the hidden states, not views that keep a large batch in memory."""
        return Prefixed(self.sequences, None if self.hidden is None else self.hidden.copied())

    def batches(self, *, batch_tokens: int, device: torch.device) -> Iterator[tuple[Batch, Tensor | None]]:
        """Right-padded batches with their hidden states ``(B, T, d)``, zero at the pads."""
        return batches_of(self, whole(self.sequences), batch_tokens=batch_tokens, device=device)


def run_layers(decoder: Decoder, inputs: LayerInputs, first: int, stop: int) -> Iterator[tuple[Batch, Tensor]]:
    """Run layers ``first .. stop - 1`` over batches, layer by layer where not all layers are in memory at once.

    Args:
        decoder: The model.
        inputs: Batches with the hidden states that layer ``first`` receives.
        first: First layer that runs.
        stop: Layer after the last one.

    Yields:
        Each batch with the output of :meth:`Decoder.span`. Consume all of them, or close the generator.
    """
    with closing(decoder.residency.segments(first, stop)) as segments:
        for segment in segments:
            outputs = run_segment(decoder, inputs, segment)
            if segment.stop == stop:
                yield from outputs
            else:
                inputs = StoredBatches(decoder, outputs)


class StoredBatches:
    """Batches whose hidden states are in a store until the next segment of layers needs them. May be read several times."""

    def __init__(self, decoder: Decoder, outputs: Iterable[tuple[Batch, Tensor]]) -> None:
        self._device, self._hidden = decoder.device, decoder.residency.hidden_store()
        self._batches: list[Batch] = []
        for k, (batch, hidden) in enumerate(outputs):
            self._hidden.put(k, hidden)
            self._batches.append(batch)

    def __iter__(self) -> Iterator[tuple[Batch, Tensor]]:
        for k, batch in enumerate(self._batches):
            yield batch, self._hidden.get(k).to(self._device, non_blocking=True)


@torch.no_grad()
def run_segment(
    decoder: Decoder, inputs: LayerInputs, layers: range, around: Callable[[Batch], AbstractContextManager[Any]] | None = None
) -> Iterator[tuple[Batch, Tensor]]:
    """Run one segment, whose weights are in memory, over batches, without a graph; each of them within ``around`` of it."""
    for batch, hidden in inputs:
        with full_speed(decoder.device, decoder.model), around(batch) if around else nullcontext():
            output = decoder.span(batch.input_ids, hidden, layers.start, layers.stop, decoder.after(batch.past, batch.input_ids.shape[1]))
        yield batch, output


def run_prefix(
    decoder: Decoder,
    sequences: Sequence[AnswerSequence],
    *,
    stop: int,
    batch_tokens: int,
    apart: Sequence[int] | None = None,
    dtype: PrefixDType = "same",
) -> Prefixed:
    """Run layers ``0 .. stop - 1`` over sequences, in batches of similar length. Long beginnings that many of them share run once.

    Args:
        decoder: The model.
        sequences: The sequences.
        stop: Layer after the last one that runs.
        batch_tokens: Padded tokens in one batch.
        apart: As for :func:`editing.model.beginnings.whole`.
        dtype: Precision of the matrix products. Between layers hidden states keep the model's.
    """
    if stop == 0:
        return Prefixed(sequences, None)
    parts = parts_of(decoder, sequences, 0, stop, apart=apart)
    hidden = decoder.residency.hidden_store()
    with torch.autocast(decoder.device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext():
        for i, states in _run_parts(decoder, Prefixed(sequences, None), parts, 0, stop, batch_tokens):
            hidden.put(i, states)
    return Prefixed(sequences, hidden)


def parts_of(decoder: Decoder, sequences: Sequence[AnswerSequence], first: int, stop: int, *, apart: Sequence[int] | None = None) -> list[Part]:
    """Sequences in parts by what they begin with, where layers ``first .. stop - 1`` can run a beginning once for all; else by ``apart`` alone."""
    parts = shared(sequences, apart)
    return parts if not any(part.beginning for part in parts) or _can_share(decoder, first, stop) else whole(sequences, apart)


def batches_of(prefixed: Prefixed, parts: Sequence[Part], *, batch_tokens: int, device: torch.device) -> Iterator[tuple[Batch, Tensor | None]]:
    """As :meth:`Prefixed.batches`, by parts: first the beginnings, which have no rows, then of each sequence what follows its own.

    A token of a beginning stands for that of each sequence that begins so.
    """
    tails, starts, hidden = list(prefixed.sequences), token_offsets(prefixed.sequences), prefixed.hidden
    for part in parts:
        if not part.beginning:
            continue
        states = None if hidden is None else hidden.get(part.members[0])[: part.length].to(device, non_blocking=True).unsqueeze(0)
        yield beginning_batch(part.beginning, [starts[i] for i in part.members], device), states
        for i in part.members:
            tails[i], starts[i] = tails[i].after(part.length), starts[i] + part.length
    for part in parts:
        for batch in batches(tails, batch_tokens=batch_tokens, device=device, parts=[part.members], before=part.length, starts=starts):
            past = After(part.beginning, len(batch.indices)) if part.beginning else None
            own = None if hidden is None else [hidden.get(i)[part.length :] for i in batch.indices]
            yield replace(batch, past=past), None if own is None else pad_sequence(own, batch_first=True).to(device, non_blocking=True)


def _run_parts(decoder: Decoder, prefixed: Prefixed, parts: Sequence[Part], first: int, stop: int, batch_tokens: int) -> Iterator[tuple[int, Tensor]]:
    """Each sequence's number with its hidden states ``(len, d)`` after layers ``first .. stop - 1``."""
    states: dict[Precedes | None, Tensor] = {}
    inputs = batches_of(prefixed, parts, batch_tokens=batch_tokens, device=decoder.device)
    for batch, output in run_layers(decoder, inputs, first, stop):
        if isinstance(batch.past, Beginning):
            states[batch.past] = output[0]
        before = states[batch.past.beginning] if isinstance(batch.past, After) else output[0, :0]
        for b, i in enumerate(batch.indices):
            own = output[b, : len(prefixed.sequences[i].input_ids) - len(before)]
            yield i, torch.cat([before, own]) if len(before) else own


def _can_share(decoder: Decoder, first: int, stop: int) -> bool:
    """Whether a family's layers make of a sequence's rest, after its beginning, what they make of it in the whole sequence; tried once.

    Layers with states of another kind (Mamba) do not. Positions that are turned by a sequence's length are not tried.
    """
    layers = range(first, stop)
    if not any(can and known.start <= first and stop <= known.stop for known, can in decoder.shares.items()) and layers not in decoder.shares:
        decoder.shares[layers] = not decoder.turns_by_length and decoder.agree(lambda: _both_ways(decoder, layers))
    return decoder.shares.get(layers, True)


@torch.no_grad()
def _both_ways(decoder: Decoder, layers: range) -> tuple[Tensor, Tensor]:
    """What follows a beginning of five tokens, as it comes out of layers after it and in two whole sequences; all in one pass."""
    tokens = tuple(token % decoder.config.vocab_size for token in range(1, 8))
    tried = [AnswerSequence(tokens, (0,)), AnswerSequence((*tokens[:5], *tokens[:2]), (0,))]
    hidden = None
    if layers.start:
        hidden, width = HiddenStore(), decoder.config.hidden_size
        for i in range(4):
            hidden.put(i, torch.arange(len(tokens) * width, device=decoder.device).view(-1, width).cos().to(decoder.head_dtype))
    parts = [Part([0, 1]), Part([2, 3], Beginning(AnswerSequence(tokens[:5], (0,))))]
    found = dict(_run_parts(decoder, Prefixed([*tried, *tried], hidden), parts, layers.start, layers.stop, 64))
    return torch.cat([found[2][5:], found[3][5:]]), torch.cat([found[0][5:], found[1][5:]])


@torch.no_grad()
def predict(decoder: Decoder, prefixed: Prefixed, *, start: int, batch_tokens: int) -> list[tuple[int, ...]]:
    """The model's likeliest token at every row, sequence by sequence, teacher-forced."""
    indices: list[int] = []
    rows: list[Tensor] = []
    parts = parts_of(decoder, prefixed.sequences, start, decoder.num_layers)
    inputs = batches_of(prefixed, parts, batch_tokens=batch_tokens, device=decoder.device)
    for batch, final in run_layers(decoder, inputs, start, decoder.num_layers):
        indices += batch.indices
        rows.append(final.flatten(0, 1)[batch.rows])
    if not rows:
        return []
    with full_speed(decoder.device, decoder.model):  # all batches at once: most of them have a few rows, and the head is large
        likeliest = iter(decoder.likeliest(torch.cat(rows)).tolist())
    found = {i: tuple(islice(likeliest, len(prefixed.sequences[i].answer_ids))) for i in indices}
    return [found[i] for i in range(len(prefixed.sequences))]


@torch.no_grad()
def perplexity(decoder: Decoder, prefixed: Prefixed, *, start: int, batch_tokens: int) -> float:
    """Exponential of the mean cross-entropy over all rows of all sequences."""
    losses: list[Tensor] = []
    inputs = prefixed.batches(batch_tokens=batch_tokens, device=decoder.device)
    for batch, final in run_layers(decoder, inputs, start, decoder.num_layers):
        losses.append(_row_losses(decoder, batch, final)[0])
    return float(torch.cat(losses).double().mean().exp())


@torch.no_grad()
def log_likelihoods(decoder: Decoder, prefixed: Prefixed, *, start: int, batch_tokens: int) -> list[tuple[float, bool]]:
    """Of each sequence, the log-probability in nats of its answer, and whether every token of it is the model's likeliest."""
    found: list[tuple[float, bool]] = [(0.0, False)] * len(prefixed.sequences)
    inputs = prefixed.batches(batch_tokens=batch_tokens, device=decoder.device)
    for batch, final in run_layers(decoder, inputs, start, decoder.num_layers):
        lengths = [len(prefixed.sequences[i].answer_ids) for i in batch.indices]
        losses, right_ones = _row_losses(decoder, batch, final)
        of_each = zip(losses.double().split(lengths), right_ones.split(lengths), strict=True)
        for i, (nats, right) in zip(batch.indices, of_each, strict=True):
            found[i] = -float(nats.sum()), bool(right.all())
    return found


def _row_losses(decoder: Decoder, batch: Batch, final: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of a batch's rows, and whether each is right, given its final hidden states."""
    with full_speed(decoder.device, decoder.model):
        return decoder.losses(final.flatten(0, 1)[batch.rows], batch.labels)
