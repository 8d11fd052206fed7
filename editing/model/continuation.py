"""Sequences from one of their tokens on: what precedes it is run once, and its keys and values are kept for attention.

    sequence    a a a a | b b b      a cannot see b, so what layers make of it stays exact while only b changes
                 past     tail       runs of the tail attend to the past's keys and values

A search that changes a hidden state at one token runs its tail again and again: half a prompt, and a small part of one with a chat
template or another sentence before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from editing.model.beginnings import After, Beginning, Part, whole
from editing.model.decoder import Decoder
from editing.model.hidden_store import HiddenStore
from editing.model.matmul import full_speed
from editing.model.past import Kept, KeysAndValues, Past, padded
from editing.model.prefix import Prefixed, batches_of, run_prefix
from editing.model.tokenization import AnswerSequence, Batch


@dataclass(frozen=True, slots=True)
class Continued:
    """Sequences from a token on, in the place of :class:`Prefixed`.

    Attributes:
        sequences: The tails; of a sequence that is not cut, all of it.
        hidden: ``(len, d)`` that the first layer of the suffix receives for them; ``None`` if it is layer 0.
        pasts: Of each sequence, the keys and values of what precedes it, by layer of the suffix.
        lengths: ``(n,)`` tokens that precede each sequence.
        start: First layer of the suffix.
    """

    sequences: Sequence[AnswerSequence]
    hidden: HiddenStore | None
    pasts: list[list[KeysAndValues]]
    lengths: Tensor
    start: int

    @classmethod
    def at_subjects(cls, decoder: Decoder, prefixed: Prefixed, *, start: int, batch_tokens: int) -> "Continued":
        """Sequences from their subjects' last token on; those without a subject as a whole.

        Args:
            decoder: The model, whose suffix is in memory.
            prefixed: The whole sequences.
            start: First layer of the suffix.
            batch_tokens: Padded tokens of a batch.
        """
        cuts = [sequence.subject or 0 for sequence in prefixed.sequences]
        heads = _part(prefixed, [slice(0, cut) for cut in cuts])
        tails = _part(prefixed, [slice(cut, None) for cut in cuts])
        longest = heads.select([i for i, cut in enumerate(cuts) if cut])
        read = read_sequences(decoder, longest, whole(longest.sequences), start=start, batch_tokens=batch_tokens)
        found = {one.number: one.layers for one in read}
        in_order = (found[i] for i in range(len(longest.sequences)))
        return cls(tails.sequences, tails.hidden, [next(in_order) if cut else [] for cut in cuts], torch.tensor(cuts, device=decoder.device), start)

    def select(self, indices: Sequence[int]) -> "Continued":
        """The given sequences only."""
        hidden = None if self.hidden is None else self.hidden.select(indices)
        sequences, pasts = [self.sequences[i] for i in indices], [self.pasts[i] for i in indices]
        return replace(self, sequences=sequences, hidden=hidden, pasts=pasts, lengths=self._lengths(indices))

    def batches(self, *, batch_tokens: int, device: torch.device) -> Iterator[tuple[Batch, Tensor | None]]:
        """As those of :class:`Prefixed`, each with its past."""
        for batch, hidden in Prefixed(self.sequences, self.hidden).batches(batch_tokens=batch_tokens, device=device):
            yield replace(batch, past=self._past(batch.indices)), hidden

    def _lengths(self, indices: Sequence[int]) -> Tensor:
        """Of the given sequences, without a copy to an accelerator."""
        return torch.stack([self.lengths[i] for i in indices]) if indices else self.lengths[:0]

    def _past(self, indices: Sequence[int]) -> Past | None:
        pasts = [self.pasts[i] for i in indices]
        longest = max(pasts, key=_length)
        if not _length(longest):
            return None
        nothing = [(keys[:, :0], values[:, :0]) for keys, values in longest]
        full = [past or nothing for past in pasts]
        layers = [(padded([past[k][0] for past in full]), padded([past[k][1] for past in full])) for k in range(len(longest))]
        return Past(layers, self._lengths(indices), self.start)


@dataclass(frozen=True, slots=True)
class Read:
    """A sequence that layers have seen.

    Attributes:
        number: Which one.
        final: ``(d,)`` final hidden state of its last token.
        layers: Keys and values of its tokens, by layer that ran.
    """

    number: int
    final: Tensor
    layers: list[KeysAndValues]

    @property
    def length(self) -> int:
        """Tokens."""
        return self.layers[0][0].shape[1]


@torch.no_grad()
def read_sequences(decoder: Decoder, prefixed: Prefixed, parts: Sequence[Part], *, start: int, batch_tokens: int) -> Iterator[Read]:
    """Run layers from ``start`` on over sequences, batch by batch, and keep what they leave for tokens to come.

    Args:
        decoder: The model, whose suffix is in memory.
        prefixed: The sequences.
        parts: Which of them share batches or a beginning.
        start: First layer that runs.
        batch_tokens: Padded tokens of a batch.
    """
    for batch, hidden in batches_of(prefixed, parts, batch_tokens=batch_tokens, device=decoder.device):
        width = batch.input_ids.shape[1]
        given = _keeping(decoder, batch, width)
        with full_speed(decoder.device, decoder.model):
            final = decoder.span(batch.input_ids, hidden, start, decoder.num_layers, given)
        layers = given["past_key_values"].layers[start:]
        for b, i in enumerate(batch.indices):
            length = len(prefixed.sequences[i].input_ids)
            last = length - 1 - (layers[0].keys.shape[2] - width)
            yield Read(i, final[b, last], [(layer.keys[b, :, :length], layer.values[b, :, :length]) for layer in layers])


def _keeping(decoder: Decoder, batch: Batch, width: int) -> dict[str, Any]:
    """Arguments of the body whose cache keeps a batch's keys and values, with those of its beginning."""
    if isinstance(batch.past, Beginning):
        return batch.past.arguments(decoder.body, width)
    if isinstance(batch.past, After):
        return batch.past.beginning.past(len(batch.indices)).arguments(decoder.body, width)
    return {"past_key_values": Cache(layer_class_to_replicate=Kept)}


def can_continue(decoder: Decoder, start: int) -> bool:
    """Whether a family's tails, with the keys and values of what precedes them, give what whole sequences give; tried once, on a short input.

    Layers with states of another kind (Mamba) do not.

    Args:
        decoder: The model.
        start: First layer of the suffix, whose weights must be in memory.
    """
    if start not in decoder.continues:
        decoder.continues[start] = decoder.agree(lambda: _both_ways(decoder, start))
    return decoder.continues[start]


@torch.no_grad()
def _both_ways(decoder: Decoder, start: int) -> tuple[Tensor, Tensor]:
    """Last hidden states of short sequences: from their subjects on, and of the whole ones."""
    numbers = [token % decoder.config.vocab_size for token in range(1, 8)]
    sequences = [AnswerSequence(tuple(numbers), (0,), subject=4), AnswerSequence(tuple(numbers[2:]), (0,), subject=2)]
    prefixed = run_prefix(decoder, sequences, stop=start, batch_tokens=64)
    continued = Continued.at_subjects(decoder, prefixed, start=start, batch_tokens=64)
    found, expected = ([hidden[-1] for hidden in _finals(decoder, way, start)] for way in (continued, prefixed))
    return torch.stack(found), torch.stack(expected)


def _finals(decoder: Decoder, prefixed: "Prefixed | Continued", start: int) -> list[Tensor]:
    """Final hidden states ``(len, d)`` of each sequence."""
    finals: dict[int, Tensor] = {}
    for batch, hidden in prefixed.batches(batch_tokens=64, device=decoder.device):
        output = decoder.suffix(batch.input_ids, hidden, start, batch.past)
        finals |= {i: output[b, : len(prefixed.sequences[i].input_ids)] for b, i in enumerate(batch.indices)}
    return [finals[i] for i in range(len(prefixed.sequences))]


def _part(prefixed: Prefixed, parts: Sequence[slice]) -> Prefixed:
    """A part of each sequence. Its answer and its subject are those of the sequence if it reaches its end."""
    hidden = None if prefixed.hidden is None else HiddenStore()
    sequences: list[AnswerSequence] = []
    for i, (sequence, part) in enumerate(zip(prefixed.sequences, parts, strict=True)):
        ids = sequence.input_ids[part]
        subject = None if sequence.subject is None else 0
        sequences.append(replace(sequence, input_ids=ids, subject=subject) if part.stop is None else AnswerSequence(ids, (0,)))
        if hidden is not None and prefixed.hidden is not None:
            hidden.put(i, prefixed.hidden.get(i)[part])
    return Prefixed(sequences, hidden)


def _length(past: list[KeysAndValues]) -> int:
    return past[0][0].shape[1] if past else 0
