"""Hidden states at the border between prefix and suffix, computed once for many sequences and kept without padding.

The prefix holds no edited module, so what it computes stays exact whatever happens to the suffix: coming turns can go
through it together, and an evaluation can reuse it for the edited and the unedited model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from editing.decoder import Decoder
from editing.matmul import full_speed
from editing.tokenization import AnswerSequence, Batch, batches


@dataclass(frozen=True, slots=True)
class Prefixed:
    """Sequences with what the suffix's first layer receives for them.

    Attributes:
        sequences: The sequences.
        hidden: Per sequence ``(len, d)``; ``None`` if the suffix begins at layer 0 and there is no prefix.
    """

    sequences: Sequence[AnswerSequence]
    hidden: Sequence[Tensor] | None

    def part(self, indices: Sequence[int]) -> "Prefixed":
        """The given sequences alone."""
        hidden = None if self.hidden is None else [self.hidden[i] for i in indices]
        return Prefixed([self.sequences[i] for i in indices], hidden)

    def detached(self) -> "Prefixed":
        """The same with hidden states of its own, not views that keep a large batch in memory."""
        return Prefixed(self.sequences, None if self.hidden is None else [h.clone() for h in self.hidden])

    def batches(self, *, batch_tokens: int, device: torch.device) -> Iterator[tuple[Batch, Tensor | None]]:
        """Right-padded batches with their hidden states ``(B, T, d)``, zero at the pads."""
        for batch in batches(self.sequences, batch_tokens=batch_tokens, device=device):
            if self.hidden is None:
                yield batch, None
            else:
                yield batch, pad_sequence([self.hidden[i] for i in batch.indices], batch_first=True)


def run_prefix(
    decoder: Decoder, sequences: Sequence[AnswerSequence], *, stop: int, batch_tokens: int, apart: Sequence[int] | None = None
) -> Prefixed:
    """Run layers ``0 .. stop - 1`` over sequences, in batches of similar length; ``apart`` as for :func:`editing.tokenization.batches`."""
    if stop == 0:
        return Prefixed(sequences, None)
    hidden: list[Tensor] = [torch.empty(0)] * len(sequences)
    with full_speed(decoder.device):
        for batch in batches(sequences, batch_tokens=batch_tokens, device=decoder.device, apart=apart):
            output = decoder.prefix(batch.input_ids, stop)
            for b, i in enumerate(batch.indices):
                hidden[i] = output[b, : len(sequences[i].input_ids)]
    return Prefixed(sequences, hidden)


@torch.no_grad()
def predict(decoder: Decoder, prefixed: Prefixed, *, start: int, batch_tokens: int) -> list[tuple[int, ...]]:
    """The model's likeliest token at every row, sequence by sequence, teacher-forced."""
    predictions: list[tuple[int, ...]] = [()] * len(prefixed.sequences)
    for batch, hidden in prefixed.batches(batch_tokens=batch_tokens, device=decoder.device):
        likeliest = torch.cat([logits.argmax(-1) for logits in _row_logits(decoder, batch, hidden, start)]).tolist()
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
    for batch, hidden in prefixed.batches(batch_tokens=batch_tokens, device=decoder.device):
        logits = torch.cat([part.float() for part in _row_logits(decoder, batch, hidden, start)])
        losses.append(F.cross_entropy(logits, batch.labels, reduction="none"))
    return float(torch.cat(losses).double().mean().exp())


def _row_logits(decoder: Decoder, batch: Batch, hidden: Tensor | None, start: int) -> Iterator[Tensor]:
    """Logits of a batch's rows, a chunk at a time."""
    with full_speed(decoder.device):
        rows = decoder.suffix(batch.input_ids, hidden, start).flatten(0, 1)[batch.rows]
        for part in decoder.head_chunks(len(rows)):
            yield decoder.logits(rows[part])
