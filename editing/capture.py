"""Keys and value gradients of a turn's rows: one forward and one backward pass through the suffix.

No parameter requires a gradient. The graph starts at the output of the lowest edited module, and the head sees rows
only, a chunk at a time: its logits are gone before the backward pass through the layers begins. Sequences do not
interact, so the mean over a group's rows becomes a weight on each row and any physical batching gives the same rows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from editing.decoder import Decoder
from editing.matmul import full_speed
from editing.parts import part_of
from editing.prefix import Carried, PutAside, run_segment
from editing.tokenization import DEFAULT_BATCH_TOKENS, Batch

HeadGradients = Callable[[list[Tensor], list[Batch]], list[Tensor]]
"""Gradients at the final hidden states of batches that go through the head together."""


@dataclass(frozen=True, slots=True)
class TurnRows:
    """What one turn's rows left behind. ``n`` rows, in the order of the turn's sequences.

    Attributes:
        keys: Per module ``(n, d_in)`` float32, or a shard's part of it: the module's input at each row.
        value_gradients: Per module ``(n, d_out)`` float32, or a shard's part of it: gradient of the group's loss at the module's output.
        losses: ``(n,)`` float32, cross-entropy of each row in nats, before the shift.
        correct: ``(n,)`` bool, whether the row's likeliest token is the answer's.
        settled: ``(n,)`` bool, whether it is so by at least the margin, and a further pass has nothing to do here.
        tokens: Per module ``(t, d_in)`` float32, the keys of all tokens in the order of the turn's sequences; empty if not asked for.
    """

    keys: dict[str, Tensor]
    value_gradients: dict[str, Tensor]
    losses: Tensor
    correct: Tensor
    settled: Tensor
    tokens: dict[str, Tensor] = field(default_factory=dict)

    def updated(self, lines: Tensor, newer: "TurnRows") -> "TurnRows":
        """With what a later pass has captured of some rows. Losses and correctness stay those before the first shift.

        The tensors are new: the shifts of earlier passes hold the old keys.
        """
        lines = lines.to(self.losses.device)
        keys, gradients = (
            {name: values.index_copy(0, lines, found[name]) for name, values in held.items()}
            for held, found in ((self.keys, newer.keys), (self.value_gradients, newer.value_gradients))
        )
        return replace(self, keys=keys, value_gradients=gradients, settled=self.settled.index_copy(0, lines, newer.settled))


def at_positions(values: Tensor, positions: Tensor) -> Tensor:
    """Float32 copy ``(n, f)`` of the values ``(B, T, f)`` at flat positions ``b * T + t``."""
    return values.detach().flatten(0, -2)[positions].float()


def group_weights(answer_lengths: Iterable[int], group_size: int) -> Tensor:
    """Weight of each row in its group's mean, ``(n,)`` float32: one over the group's number of rows."""
    lengths = list(answer_lengths)
    weights: list[float] = []
    for a in range(0, len(lengths), group_size):
        rows = sum(lengths[a : a + group_size])
        weights += [1.0 / rows] * rows
    return torch.tensor(weights)


def capture(
    decoder: Decoder,
    modules: Mapping[str, nn.Linear],
    inputs: Carried,
    weights: Tensor,
    *,
    start: int,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    margin: float = 0.0,
    num_tokens: int | None = None,
) -> TurnRows:
    """Run the suffix forward and back, and keep each module's rows.

    Args:
        decoder: The model.
        modules: The edited modules by name.
        inputs: Batches with the hidden states that layer ``start`` receives.
        weights: ``(n,)`` from :func:`group_weights`.
        start: First layer of the suffix.
        batch_tokens: Padded tokens whose graphs may be kept at once.
        margin: By how many nats the answer's log-probability must exceed every other token's for a row to be settled.
        num_tokens: Tokens in all batches together, where the keys of all of them are wanted; else ``None``.
    """
    n, device = len(weights), decoder.device
    weights = weights.to(device)
    rows = TurnRows(
        keys={name: torch.empty(n, part_of(m).num_keys, device=device) for name, m in modules.items()},
        value_gradients={name: torch.empty(n, part_of(m).num_values, device=device) for name, m in modules.items()},
        losses=torch.empty(n, device=device),
        correct=torch.empty(n, dtype=torch.bool, device=device),
        settled=torch.empty(n, dtype=torch.bool, device=device),
        tokens={name: torch.empty(num_tokens, part_of(m).num_keys, device=device) for name, m in modules.items()} if num_tokens is not None else {},
    )
    with full_speed(device):
        at_once = decoder.residency.holds(start, decoder.num_layers)
        head_gradients = partial(_head_gradients, decoder, weights=weights, rows=rows, margin=margin)
        (_capture_at_once if at_once else _capture_by_segments)(decoder, modules, inputs, rows, start, batch_tokens, head_gradients)
    return rows


def _capture_at_once(
    decoder: Decoder, modules: Mapping[str, nn.Linear], inputs: Carried, rows: TurnRows, start: int, batch_tokens: int, head_gradients: HeadGradients
) -> None:
    """Keep the graph of the whole suffix for as many batches as go through the head together."""
    for together in _within(batch_tokens, inputs):
        finals = []
        for batch, hidden in together:
            with _Recorder(modules, batch, rows):
                finals.append(decoder.suffix(batch.input_ids, hidden, start))
        gradients = head_gradients(finals, [batch for batch, _ in together])
        torch.autograd.backward(finals, gradients)


def _capture_by_segments(
    decoder: Decoder, modules: Mapping[str, nn.Linear], inputs: Carried, rows: TurnRows, start: int, batch_tokens: int, head_gradients: HeadGradients
) -> None:
    """Where the suffix is not in memory at once: up without a graph, then down segment by segment, each run again with one."""
    received: dict[int, Carried] = {}
    inputs = list(inputs)
    with closing(decoder.residency.segments(start, decoder.num_layers)) as segments:
        for segment in segments:
            received[segment.start] = inputs
            inputs = PutAside(decoder, run_segment(decoder, inputs, segment))
    gradients: list[Tensor] = []
    for together in _within(batch_tokens, inputs):
        gradients += head_gradients([final for _, final in together], [batch for batch, _ in together])
    with closing(decoder.residency.segments(start, decoder.num_layers, down=True)) as segments:
        for segment in segments:
            own = {name: m for name, m in modules.items() if decoder.layer_of(name) in segment}
            for k, (batch, hidden) in enumerate(received.pop(segment.start)):
                with _Recorder(own, batch, rows):
                    leaf = None if hidden is None else hidden.detach().requires_grad_(segment.start > start)
                    output = decoder.span(batch.input_ids, leaf, segment.start, segment.stop)
                torch.autograd.backward(output, gradients[k])
                gradients[k] = leaf.grad if leaf is not None and leaf.grad is not None else gradients[k]


def _within(limit: int, inputs: Carried) -> Iterator[list[tuple[Batch, Any]]]:
    """Batches that go through the head together: it reads its whole table once for all their rows."""
    together: list[tuple[Batch, Tensor | None]] = []
    used = 0
    for batch, hidden in inputs:
        if together and used + batch.input_ids.numel() > limit:
            yield together
            together, used = [], 0
        together.append((batch, hidden))
        used += batch.input_ids.numel()
    if together:
        yield together


def _head_gradients(decoder: Decoder, finals: list[Tensor], batches: list[Batch], *, weights: Tensor, rows: TurnRows, margin: float) -> list[Tensor]:
    """Gradients of the loss at the final hidden states, ``(B, T, d)`` each; fills in losses, correctness and what is settled."""
    chosen = torch.cat([final.detach().flatten(0, 1)[batch.rows] for final, batch in zip(finals, batches, strict=True)])
    labels, ids = torch.cat([batch.labels for batch in batches]), torch.cat([batch.row_ids for batch in batches])
    at_rows = torch.empty_like(chosen)
    for part in decoder.head_chunks(len(chosen)):
        leaf = chosen[part].requires_grad_()
        logits = decoder.logits(leaf).float()
        losses = F.cross_entropy(logits, labels[part], reduction="none")
        rows.losses[ids[part]] = losses.detach()
        rows.correct[ids[part]] = correct = logits.detach().argmax(-1) == labels[part]
        (at_rows[part],) = torch.autograd.grad(losses, leaf, weights[ids[part]])
        rows.settled[ids[part]] = correct & (_lead(logits.detach(), labels[part]) >= margin) if margin else correct
    gradients = [torch.zeros_like(final) for final in finals]
    for gradient, batch, part in zip(gradients, batches, at_rows.split([len(batch.rows) for batch in batches]), strict=True):
        gradient.flatten(0, 1)[batch.rows] = part
    return gradients


def _lead(logits: Tensor, labels: Tensor) -> Tensor:
    """``(n,)`` nats from the best other token's log-probability to the label's. Overwrites the labels' logits."""
    own = logits.gather(1, labels.unsqueeze(1))
    return own.squeeze(1) - logits.scatter_(1, labels.unsqueeze(1), -torch.inf).amax(1)


class _Recorder:
    """Forward hooks on the edited modules that copy the batch's rows of inputs and output gradients."""

    def __init__(self, modules: Mapping[str, nn.Linear], batch: Batch, rows: TurnRows) -> None:
        self._modules, self._batch, self._rows = modules, batch, rows
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        self._handles = [m.register_forward_hook(self._hook(name)) for name, m in self._modules.items()]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def record(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            self._rows.keys[name][self._batch.row_ids] = at_positions(inputs[0], self._batch.rows)
            if self._rows.tokens:
                self._rows.tokens[name][self._batch.token_ids] = at_positions(inputs[0], self._batch.tokens)
            if not output.requires_grad:  # nothing edited lies below: the graph starts here
                output.requires_grad_()
            output.register_hook(store_gradient)
            return output

        def store_gradient(gradient: Tensor) -> None:
            self._rows.value_gradients[name][self._batch.row_ids] = at_positions(gradient, self._batch.rows)

        return record
