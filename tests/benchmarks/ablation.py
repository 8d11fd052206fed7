"""Each fast path of :class:`editing.Editor` switched off alone, from the outside, and timed on the same turns.

Variants take turns within a round, in an order that moves on each time, so that drift of the machine hits all of them; the
first round is a warm-up.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

import editing.model.capture
from editing import Editor
from editing.method.rows import TurnRows
from editing.model import matmul, tokenization
from editing.model.decoder import Decoder
from editing.model.tokenization import Batch
from editing.turn import Turn
from tests.benchmarks.workload import relative_difference, seconds

Patch = Callable[[Editor], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Variant:
    """A way to run the editor.

    Attributes:
        name: What is switched off.
        options: Fields of the editor's configuration that differ.
        patch: Context in which turns are prepared and applied.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    patch: Patch = lambda _: nullcontext()


@dataclass(frozen=True)
class Ablation:
    """Median times of a variant, and how far its shifts are from those with all fast paths on."""

    name: str
    seconds: float
    prefix_seconds: float
    difference: float


def run_ablation(editor: Editor, turns: list[Turn]) -> list[Ablation]:
    """Time every variant on every turn, each turn from the unedited weights. The first turn does not count."""
    editors = {v.name: Editor(editor.model, editor.tokenizer, replace(editor.config, **v.options)) for v in VARIANTS}
    times: dict[str, list[tuple[float, float]]] = {v.name: [] for v in VARIANTS}
    differences: dict[str, float] = {v.name: 0.0 for v in VARIANTS}
    for index, turn in enumerate(turns):
        shifts: dict[str, dict[str, Tensor]] = {}
        for variant in VARIANTS[index:] + VARIANTS[:index]:  # nobody always goes first
            own = editors[variant.name]
            with variant.patch(own):
                times[variant.name].append(time_turn(own, turn))
            shifts[variant.name] = total_shifts(own)
            own.restore()
        for name, found in shifts.items():
            worst = max(relative_difference(found[module], expected) for module, expected in shifts[VARIANTS[0].name].items())
            differences[name] = max(differences[name], worst)
    return [
        Ablation(name, median(t for t, _ in measured[1:]), median(p for _, p in measured[1:]), differences[name]) for name, measured in times.items()
    ]


def time_turn(editor: Editor, turn: Turn) -> tuple[float, float]:
    """Apply one turn; seconds in all with its prefix, and those of the prefix."""
    (prepared,) = editor.prepare([turn])
    elapsed = seconds(lambda: editor.apply_turn(prepared, measure=False))
    return prepared.prefix_seconds + elapsed, prepared.prefix_seconds


def total_shifts(editor: Editor) -> dict[str, Tensor]:
    """What the edits so far changed in each module."""
    now = {name: module.weight.detach().clone() for name, module in editor.modules.items()}
    with editor.unedited():
        return {name: now[name] - module.weight.detach() for name, module in editor.modules.items()}


@contextmanager
def weight_gradients(editor: Editor) -> Iterator[None]:
    """Edited weights get gradients of their own, which nobody reads."""
    weights = [module.weight for module in editor.modules.values()]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None


def head_on_all_positions(_: Editor) -> AbstractContextManager[Any]:
    """The head runs on every position; the loss still counts answer rows only."""
    return mock.patch.object(editing.model.capture, "_head_gradients", _full_head_gradients)


def one_padded_batch(_: Editor) -> AbstractContextManager[Any]:
    """Any share of a batch may be padding."""
    return mock.patch.object(tokenization, "_MAX_PADDING", 1.0)


def a_head_pass_a_batch(_: Editor) -> AbstractContextManager[Any]:
    """Batches go through the head and back one by one."""
    return mock.patch.object(editing.model.capture, "_within", lambda _limit, inputs: ([one] for one in inputs))


def products_by_torchs_choice(_: Editor) -> AbstractContextManager[Any]:
    """Matrix products stay where torch sends them."""
    return mock.patch.object(matmul, "_mkl_is_slow", return_value=False)


VARIANTS = (
    Variant("none: all on"),
    Variant("row form", options={"solve": "d_in"}),
    Variant("no weight gradients", patch=weight_gradients),
    Variant("head on answer rows only", patch=head_on_all_positions),
    Variant("length buckets", options={"batch_tokens": 2**30}, patch=one_padded_batch),
    Variant("frozen prefix", options={"cache_prefix": False}),
    Variant("one head pass for all batches", patch=a_head_pass_a_batch),
    Variant("oneDNN for large products", patch=products_by_torchs_choice),
)


def _full_head_gradients(
    decoder: Decoder, finals: list[Tensor], batches: list[Batch], weights: Tensor, rows: TurnRows, _margin: float
) -> list[Tensor]:
    """Stands in for ``editing.model.capture._head_gradients``: all positions, in the same chunks."""
    return [_full_head_gradient(decoder, final, batch, weights, rows) for final, batch in zip(finals, batches, strict=True)]


def _full_head_gradient(decoder: Decoder, final: Tensor, batch: Batch, weights: Tensor, rows: TurnRows) -> Tensor:
    everything = final.detach().flatten(0, 1)
    gradient = torch.zeros_like(everything)
    for part in decoder.head_chunks(len(everything)):
        leaf = everything[part].clone().requires_grad_()
        logits = decoder.logits(leaf).float()
        inside = (batch.rows >= part.start) & (batch.rows < part.stop)
        labels, ids = batch.labels[inside], batch.row_ids[inside]
        chosen = logits[batch.rows[inside] - part.start]
        losses = F.cross_entropy(chosen, labels, reduction="none")
        rows.losses[ids] = losses.detach()
        rows.correct[ids] = chosen.detach().argmax(-1) == labels
        (gradient[part],) = torch.autograd.grad(losses, leaf, weights[ids])
    return gradient.view_as(final)
