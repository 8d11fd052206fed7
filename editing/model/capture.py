"""Keys and value gradients of a turn's rows: one forward and one backward pass through the suffix.

No parameter requires a gradient. The graph starts at the output of the lowest edited module. The head sees rows only, a chunk at
a time, and its logits are freed before the backward pass through the layers begins. Sequences do not interact, so the mean over
a group's rows becomes a weight on each row, and any physical batching gives the same rows. A beginning that sequences share
(:mod:`editing.model.beginnings`) runs once and without a graph: it holds no row, and no row's gradient goes back through what precedes the row.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from editing.config import DEFAULT_BATCH_TOKENS
from editing.method.rows import Site, TurnRows
from editing.model.decoder import Decoder
from editing.model.matmul import full_speed
from editing.model.prefix import LayerInputs, StoredBatches, run_segment
from editing.model.tokenization import Batch
from editing.sharding.shards import shard_of

HeadGradients = Callable[[list[Tensor], list[Batch]], list[Tensor]]
"""Gradients at the final hidden states of batches that go through the head together."""


def at_positions(values: Tensor, positions: Tensor) -> Tensor:
    """Float32 copy ``(n, f)`` of the values ``(B, T, f)`` at flat positions ``b * T + t``."""
    return values.detach().flatten(0, -2)[positions].float()


def group_weights(answer_lengths: Iterable[int], group_size: int) -> Tensor:
    """Weight of each row in the mean over its group, ``(n,)`` float32: 1 / the group's number of rows.

    Args:
        answer_lengths: Rows of each sequence, in the order of the turn.
        group_size: Sequences in a group.
    """
    lengths = list(answer_lengths)
    weights: list[float] = []
    for a in range(0, len(lengths), group_size):
        rows = sum(lengths[a : a + group_size])
        weights += [1.0 / rows] * rows
    return torch.tensor(weights)


def capture(
    decoder: Decoder,
    modules: Mapping[str, nn.Linear],
    inputs: LayerInputs,
    weights: Tensor,
    *,
    start: int,
    sites: Mapping[str, Site] | None = None,
    num_subjects: int = 0,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    margin: float = 0.0,
    num_tokens: int | None = None,
    residuals: Mapping[str, Tensor] | None = None,
    outputs: Collection[str] = (),
) -> TurnRows:
    """Run the suffix forward and back, and copy each module's rows.

    Args:
        decoder: The model.
        modules: The edited modules by name.
        inputs: Batches with the hidden states that layer ``start`` receives.
        weights: ``(n,)`` of :func:`group_weights`.
        start: First layer of the suffix.
        sites: Where each module is edited, by name; by default at the answers.
        num_subjects: Rows at the subjects in all batches together.
        batch_tokens: Padded tokens whose graphs may be in memory at once.
        margin: Nats by which the answer's log-probability must exceed every other token's; a row below it is pending.
        num_tokens: Tokens in all batches together, if the keys of all of them are to be captured; else ``None``.
        residuals: By module, what is added to its output at each of its rows in this run; by default nothing.
        outputs: Modules whose outputs are captured too.
    """
    device = decoder.device
    weights = weights.to(device)
    num_rows: dict[Site, int] = {"answer": len(weights), "subject": num_subjects}
    shards = {name: shard_of(module) for name, module in modules.items()}
    rows = TurnRows.empty(shards, sites or {}, num_rows, num_tokens=num_tokens, outputs=outputs, device=device)
    with full_speed(device, decoder.model):
        at_once = decoder.residency.holds(start, decoder.num_layers)
        head_gradients = partial(_head_gradients, decoder, weights=weights, rows=rows, margin=margin)
        hooks = _Hooks(modules, rows, residuals or {})
        (_capture_at_once if at_once else _capture_by_segments)(decoder, hooks, inputs, start, batch_tokens, head_gradients)
    return rows


def _capture_at_once(
    decoder: Decoder,
    hooks: "_Hooks",
    inputs: LayerInputs,
    start: int,
    batch_tokens: int,
    head_gradients: HeadGradients,
) -> None:
    """Keep the graph of the whole suffix for as many batches as go through the head together."""
    for together in _within(batch_tokens, inputs):
        finals = []
        for batch, hidden in together:
            with hooks.recording(batch):
                finals.append(decoder.suffix(batch.input_ids, hidden, start, batch.past))
        gradients = head_gradients(finals, [batch for batch, _ in together])
        with_rows = [k for k, (batch, _) in enumerate(together) if batch.has_rows]
        torch.autograd.backward([finals[k] for k in with_rows], [gradients[k] for k in with_rows])


def _capture_by_segments(
    decoder: Decoder,
    hooks: "_Hooks",
    inputs: LayerInputs,
    start: int,
    batch_tokens: int,
    head_gradients: HeadGradients,
) -> None:
    """Where the suffix is not in memory at once: up without a graph, then down, where each segment runs again with its graph."""
    received: dict[int, LayerInputs] = {}
    inputs = list(inputs)
    with closing(decoder.residency.segments(start, decoder.num_layers)) as segments:
        for segment in segments:
            received[segment.start] = inputs
            inputs = StoredBatches(decoder, run_segment(decoder, inputs, segment, hooks.adding))
    gradients: list[Tensor] = []
    for together in _within(batch_tokens, inputs):
        gradients += head_gradients([final for _, final in together], [batch for batch, _ in together])
    with closing(decoder.residency.segments(start, decoder.num_layers, down=True)) as segments:
        for segment in segments:
            for k, (batch, hidden) in enumerate(received.pop(segment.start)):
                with hooks.recording(batch):
                    leaf = None if hidden is None else hidden.detach().requires_grad_(segment.start > start and batch.has_rows)
                    output = decoder.span(batch.input_ids, leaf, segment.start, segment.stop, decoder.after(batch.past, batch.input_ids.shape[1]))
                if batch.has_rows:
                    torch.autograd.backward(output, gradients[k])
                gradients[k] = leaf.grad if leaf is not None and leaf.grad is not None else gradients[k]


def _within(limit: int, inputs: LayerInputs) -> Iterator[list[tuple[Batch, Any]]]:
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
    """Gradients of the loss at the final hidden states, ``(B, T, d)`` each. Fills in losses and which rows are correct or pending."""
    chosen = torch.cat([final.detach().flatten(0, 1)[batch.rows] for final, batch in zip(finals, batches, strict=True)])
    labels, ids = torch.cat([batch.labels for batch in batches]), torch.cat([batch.row_ids for batch in batches])
    at_rows = torch.empty_like(chosen)
    for chunk in decoder.head_chunks(len(chosen)):
        numbers = ids[chunk]
        leaf = chosen[chunk].requires_grad_()
        logits = decoder.logits(leaf)
        table = logits.detach().to(torch.float32, copy=type(decoder.head) is not nn.Linear)  # a sharded head's output must stay as it is
        found = _cross_entropy(table, labels[chunk], weights[numbers], margin)
        rows.losses[numbers], rows.correct[numbers], rows.pending[numbers], at_logits = found
        (at_rows[chunk],) = torch.autograd.grad(logits, leaf, at_logits.to(logits.dtype))
    gradients = [torch.zeros_like(final) for final in finals]
    for gradient, batch, of_batch in zip(gradients, batches, at_rows.split([len(batch.rows) for batch in batches]), strict=True):
        gradient.flatten(0, 1)[batch.rows] = of_batch
    return gradients


def _cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, whether rows are right and whether they are pending, ``(n,)`` each, and the gradient of the weighted loss at the logits.

    The gradient is ``w (softmax - one-hot)``. It takes the logits' place, which are gone then: over a large vocabulary each further table of
    this size would cost as much memory as a layer, and the time to write it.

    Args:
        logits: ``(n, V)`` float32; overwritten.
        labels: ``(n,)``, the token that each row shall predict.
        weights: ``(n,)``, of each row's loss.
        margin: Lead in nats below which a right row is pending.
    """
    at = labels.unsqueeze(1)
    most, likeliest = logits.max(1, keepdim=True)
    right = likeliest.squeeze(1) == labels
    logits.sub_(most)
    own = logits.gather(1, at)
    pending = ~right
    if margin:
        logits.scatter_(1, at, -torch.inf)
        pending |= (own - logits.amax(1, keepdim=True)).squeeze(1) < margin
        logits.scatter_(1, at, own)
    total = logits.exp_().sum(1, keepdim=True)
    losses = (total.log() - own).squeeze(1)
    logits.mul_(weights.unsqueeze(1) / total).scatter_add_(1, at, -weights.unsqueeze(1))
    return losses, right, pending, logits


class _Hooks:
    """Forward hooks on the edited modules, for one batch at a time: they add residuals, and copy rows of inputs and output gradients.

    Args:
        modules: The edited modules by name.
        rows: Where the rows are copied to.
        residuals: By module, what is added to its output at each of its rows.
    """

    def __init__(self, modules: Mapping[str, nn.Linear], rows: TurnRows, residuals: Mapping[str, Tensor]) -> None:
        self._modules, self._rows, self._residuals = modules, rows, residuals

    @contextmanager
    def adding(self, batch: Batch) -> Iterator[None]:
        """Within this context a run of a batch has the residuals added."""
        with ExitStack() as stack:
            for name in self._residuals:
                stack.callback(self._modules[name].register_forward_hook(self._adder(name, batch)).remove)
            yield

    @contextmanager
    def recording(self, batch: Batch) -> Iterator[None]:
        """The same, and its rows are copied."""
        with self.adding(batch), ExitStack() as stack:
            for name, module in self._modules.items():
                stack.callback(module.register_forward_hook(self._recorder(name, batch)).remove)
            yield

    def _adder(self, name: str, batch: Batch) -> Any:
        positions, row_ids = batch.at(self._rows.site(name))

        def add(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            added = self._residuals[name][row_ids].to(output.dtype)
            return output.flatten(0, -2).index_add(0, positions, added).view_as(output)

        return add

    def _recorder(self, name: str, batch: Batch) -> Any:
        positions, row_ids = batch.at(self._rows.site(name))

        def record(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            self._rows.keys[name][row_ids] = at_positions(inputs[0], positions)
            if name in self._rows.outputs:
                self._rows.outputs[name][row_ids] = at_positions(output, positions)
            if self._rows.tokens:
                self._rows.tokens[name][batch.token_ids] = at_positions(inputs[0], batch.tokens)
            if not batch.has_rows:
                return output  # and no graph begins
            if not output.requires_grad:  # no edited module is below this one: the graph starts here
                output = output.requires_grad_().clone()  # some families add to it in place, which a leaf does not allow
            output.register_hook(store_gradient)
            return output

        def store_gradient(gradient: Tensor) -> None:
            self._rows.value_gradients[name][row_ids] = at_positions(gradient, positions)

        return record
