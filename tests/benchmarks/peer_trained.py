"""Two peers that are trained: a low-rank adapter (LoRA, Hu et al., arXiv 2106.09685), and plain fine-tuning of one MLP's down projection.

Both go down the mean over edits, in each way of asking, of the mean cross-entropy of the target's tokens with Adam, all edits of a turn in every
step, until the mean loss is below ``enough`` nats. The adapter ``scale * B A`` is merged into the weights at the end of each turn.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from editing.model.prefix import Prefixed, run_prefix
from editing.turn import TokenizedEdit
from tests.benchmarks.peer_bench import Ask, Bench

BATCH_TOKENS = 1024


def lora(
    bench: Bench,
    edits: Sequence[TokenizedEdit],
    *,
    learning_rate: float,
    modules: Sequence[str],
    rank: int = 8,
    scale: float = 2.0,
    steps: int = 20,
    enough: float = 0.05,
    seed: int = 0,
) -> Ask:
    """Train and merge a low-rank adapter of the named linears in every layer."""
    layers = range(bench.decoder.num_layers)
    for turn in bench.turns(edits):
        adapted = [Adapter(bench.linear(f"{layer}.{name}"), rank, scale, seed + layer) for layer in layers for name in modules]
        prefixed = Prefixed([form for edit in turn for form in edit.forms], None)
        with _in_place(adapted):
            _train(bench, prefixed, [p for adapter in adapted for p in (adapter.a, adapter.b)], 0, learning_rate, steps, enough)
        for adapter in adapted:
            adapter.merge()
    return str


def fine_tuning(bench: Bench, edits: Sequence[TokenizedEdit], *, learning_rate: float, layer: int, steps: int = 20, enough: float = 0.05) -> Ask:
    """Train the down projection of one layer."""
    weight = bench.linear(f"{layer}.mlp.down_proj").weight.requires_grad_()
    for turn in bench.turns(edits):
        prefixed = run_prefix(bench.decoder, [form for edit in turn for form in edit.forms], stop=layer, batch_tokens=BATCH_TOKENS)
        _train(bench, prefixed, [weight], layer, learning_rate, steps, enough)
    weight.requires_grad_(False)
    return str


class Adapter:
    """A low-rank change of a linear, at first nothing.

    Args:
        linear: The linear.
        rank: Rank of the change.
        scale: What ``B A`` is multiplied by.
        seed: Seed of ``A``; ``B`` begins with zeros.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        d_out, d_in = linear.weight.shape
        self.linear, self.scale = linear, scale
        self.a = (torch.rand(rank, d_in, generator=random) * 2 - 1).div_(d_in**0.5).requires_grad_()
        self.b = torch.zeros(d_out, rank, requires_grad=True)

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + self.scale * (inputs[0] @ self.a.T) @ self.b.T

    @torch.no_grad()
    def merge(self) -> None:
        """Add the change to the linear's weight."""
        self.linear.weight += self.scale * self.b @ self.a


@contextmanager
def _in_place(adapters: Sequence[Adapter]) -> Iterator[None]:
    handles = [adapter.linear.register_forward_hook(adapter) for adapter in adapters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _train(bench: Bench, prefixed: Prefixed, parameters: Sequence[Tensor], start: int, learning_rate: float, steps: int, enough: float) -> None:
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        if _backward(bench, prefixed, start) < enough:
            break
        optimizer.step()


def _backward(bench: Bench, prefixed: Prefixed, start: int) -> float:
    """Add up the gradients of the loss of all edits; the loss in nats."""
    decoder, total = bench.decoder, 0.0
    weights = [1 / len(s.answer_ids) / len(prefixed.sequences) for s in prefixed.sequences for _ in s.answer_ids]
    for batch, hidden in prefixed.batches(batch_tokens=BATCH_TOKENS, device=decoder.device):
        final = decoder.suffix(batch.input_ids, hidden, start)
        losses = F.cross_entropy(decoder.logits(final.flatten(0, 1)[batch.rows]).float(), batch.labels, reduction="none")
        loss = (losses * torch.tensor(weights)[batch.row_ids]).sum()
        loss.backward()
        total += float(loss.detach())
    return total
