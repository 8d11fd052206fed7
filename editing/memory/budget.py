"""What of a model fits into a memory budget: which layers stay, which are streamed, and how much is left for hidden states.

    process | head, norms | table, if tied | layers m .. L-1 | edited weights below | masters | two slots | work | hidden states
              `---------------- stay: m is the smallest number of streamed layers that fits --------'

Weights are counted exactly, from the model's parameters on the meta device. ``work`` is what a pass needs beside them. It is
estimated from the largest batch, and generously, since a pass that runs cannot be made smaller.
"""

import os
import re
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from editing.config import MethodOptions
from editing.errors import InputError
from editing.method.preserve import is_exact
from editing.model.decoder import HEAD_CHUNK_ELEMENTS, Decoder
from editing.model.token_keys import PORTION_TOKENS
from editing.reference_text import PREDICTED_TOKENS
from editing.sharding.shards import Shape, shard_of

MIB = 2**20

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_MARGIN = 0.1
"""Share of the free memory that ``auto`` does not use."""
_TOKENS_AN_EDIT = 32
_ROWS_AN_EDIT = 5
"""Estimates of the length of an edit; most are shorter."""


def parse_size(text: str) -> int | None:
    """Bytes of ``6GiB``, ``800MB`` or ``5e9``; ``None`` for ``auto``.

    Raises:
        InputError: It is neither a size nor ``auto``.
    """
    if text.strip().lower() == "auto":
        return None
    found = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    try:
        size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    except (ValueError, KeyError):
        size = 0
    if size <= 0:
        raise InputError(f"device_memory: expected a size like 6GiB or 800MB, or auto; found {text!r}")
    return size


def free_memory(device: torch.device) -> int:
    """Bytes that this process may use on a device, with a margin left: free memory of a GPU, else what the machine and its control groups allow."""
    if device.type == "cuda":
        return int((1 - _MARGIN) * torch.cuda.mem_get_info(device)[0])
    return int((1 - _MARGIN) * min([_available(), *_group_limits()])) + resident_bytes()


def resident_bytes() -> int:
    """Resident memory of this process in bytes; 0 if the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def peak_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))  # ru_maxrss begins with the parent's


def show_size(size: float) -> str:
    """``1.2 GiB`` or ``340 MiB``."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / MIB:.0f} MiB"


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Sizes of a model, in bytes of the precision in which it is loaded where not said otherwise.

    Attributes:
        layers: Of the weights of each layer.
        edited: Of the edited weights of each layer.
        rest: Of the head, the norms, and an embedding table that is also the head; another embedding table stays on disk.
        masters: Of the float32 copies of the edited weights.
        widest: Of the largest single weight of a layer.
        start: Lowest edited layer.
        itemsize: Of one weight.
        hidden: Width of the hidden states, in features.
        inner: Largest input or output of the linears of a layer, in features.
        vocabulary: Entries of the head.
        modules: Number of edited modules.
        shapes: ``(d_in, d_out)`` of each edited module.
        kept: Features that attention keeps of a token in a layer, keys and values together.
    """

    layers: tuple[int, ...]
    edited: tuple[int, ...]
    rest: int
    masters: int
    widest: int
    start: int
    itemsize: int
    hidden: int
    inner: int
    vocabulary: int
    modules: int
    shapes: tuple[Shape, ...] = ()
    kept: int = 0

    @classmethod
    def of(cls, decoder: Decoder, modules: Mapping[str, nn.Linear], dtype: torch.dtype) -> "Footprint":
        """Of a model whose parameters may be on the meta device."""
        item = dtype.itemsize
        layers = [[p.numel() * item for p in layer.parameters()] for layer in decoder.layers]
        edited = [0] * decoder.num_layers
        for name, module in modules.items():
            edited[decoder.layer_of(name)] += module.weight.numel() * item
        inside = {id(p) for p in decoder.layers.parameters()}
        outside = {id(p): p.numel() * item for p in decoder.model.parameters() if id(p) not in inside}
        if not decoder.is_tied:
            outside.pop(id(decoder.table.weight), None)
        shapes = [tuple(p.shape) for p in decoder.layers.parameters() if p.dim() == 2]
        return cls(
            layers=tuple(map(sum, layers)),
            edited=tuple(edited),
            rest=sum(outside.values()),
            masters=0 if dtype == torch.float32 else sum(edited) // item * 4,
            widest=max(size for layer in layers for size in layer),
            start=min((decoder.layer_of(name) for name in modules), default=decoder.num_layers),
            itemsize=item,
            hidden=decoder.config.hidden_size,
            inner=max(max(shape) for shape in shapes),
            vocabulary=decoder.config.vocab_size,
            modules=len(modules),
            shapes=tuple(shard_of(module).shape for module in modules.values()),
            kept=_kept(decoder.config),
        )


@dataclass(frozen=True, kw_only=True)
class Work:
    """What decides how much memory a run needs beside the weights.

    Attributes:
        batch_tokens: Padded tokens in one physical batch.
        edits_per_turn: Edits that share one shift per module.
        process: Bytes that the process uses before anything is loaded.
        masters: Whether float32 copies of the edited weights are kept.
        method: The method's options.
    """

    batch_tokens: int
    edits_per_turn: int
    process: int
    masters: bool = True
    method: MethodOptions = field(default_factory=MethodOptions)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where a model's layers are during a run.

    Attributes:
        budget: Bytes that may be used.
        breakdown: Bytes by use; their sum is the expected peak.
        streamed: Number of layers, from the lowest, that are read when a pass needs them.
        start: Lowest edited layer.
        num_layers: Number of all layers.
        masters: Whether float32 copies of the edited weights are kept.
        hidden_limit: Bytes of hidden states that may be in memory at a time.
        read_bytes: Bytes that one pass over the streamed layers reads.
    """

    budget: int
    breakdown: dict[str, int]
    streamed: int
    start: int
    num_layers: int
    masters: bool
    hidden_limit: int
    read_bytes: int

    @property
    def peak(self) -> int:
        """Expected peak, in bytes."""
        return sum(self.breakdown.values())


def make_plan(footprint: Footprint, work: Work, budget: int) -> MemoryPlan:
    """The plan that streams the fewest layers. Float32 masters are dropped only if no other plan fits.

    Args:
        footprint: Sizes of the model.
        work: What else needs memory.
        budget: Bytes that may be used.

    Raises:
        InputError: The budget is too small for any plan. The message names the smallest that works.
    """
    choices = [(m, masters) for masters in dict.fromkeys((work.masters, False)) for m in range(len(footprint.layers) + 1)]
    breakdowns = {choice: memory_breakdown(footprint, work, *choice) for choice in choices}
    for (streamed, masters), breakdown in breakdowns.items():
        spare = budget - sum(breakdown.values())
        if spare >= 0:
            limit = breakdown["hidden states"] // 3 + spare // 4
            read = sum(footprint.layers[:streamed]) - sum(footprint.edited[:streamed])
            return MemoryPlan(budget, breakdown, streamed, footprint.start, len(footprint.layers), masters, limit, read)
    least = min(breakdowns.values(), key=lambda breakdown: sum(breakdown.values()))
    smallest = -(-sum(least.values()) // MIB)
    uses = ", ".join(f"{name} {show_size(size)}" for name, size in least.items() if size)
    raise InputError(f"device_memory: {show_size(budget)} is too little for this model; the smallest that works is {smallest}MiB: {uses}")


def memory_breakdown(footprint: Footprint, work: Work, streamed: int, masters: bool) -> dict[str, int]:
    """Bytes by use, if a number of layers is streamed.

    Args:
        footprint: Sizes of the model.
        work: What else needs memory.
        streamed: Number of streamed layers, from the lowest.
        masters: Whether float32 copies of the edited weights are kept.
    """
    slots = sorted(a - b for a, b in zip(footprint.layers[:streamed], footprint.edited[:streamed], strict=True))[-1:] * min(2, streamed)
    forms = work.edits_per_turn * len(work.method.framings)
    of_turn = forms * _TOKENS_AN_EDIT
    at_once = max(of_turn, PORTION_TOKENS if work.method.preserves_text else 0)
    tokens = min(work.batch_tokens, at_once)
    variants = 1 + work.method.subject_contexts + (work.method.preserve_neighbours + work.method.preserve_alike) * work.method.holds_neighbours
    return {
        "process": work.process,
        "head and norms": footprint.rest,
        f"{len(footprint.layers) - streamed} layers that stay": sum(footprint.layers[streamed:]),
        "edited weights of other layers": sum(footprint.edited[:streamed]),
        "edited weights as they were": sum(footprint.edited),
        "float32 masters": footprint.masters if masters else 0,
        "edited weights as before a turn": (sum(footprint.edited) + (footprint.masters if masters else 0)) * (work.method.passes > 1),
        "second moments": sum(second_moments_bytes(shape, work.method, at_once) for shape in footprint.shapes),
        "slots for streamed layers": sum(slots),
        "work": _work_bytes(footprint, tokens, forms * _ROWS_AN_EDIT, streamed, masters),
        "keys and values before subjects": _before_subjects(footprint, work, forms) if streamed <= footprint.start else 0,
        "hidden states": 3 * min(of_turn * variants * footprint.hidden * footprint.itemsize, 64 * MIB),
    }


def _before_subjects(footprint: Footprint, work: Work, forms: int) -> int:
    """What solved targets keep of the tokens before the subjects, about half of an edit's, where the suffix is in memory."""
    if not work.method.solves_targets:
        return 0
    tokens = forms * (1 + work.method.subject_contexts) * _TOKENS_AN_EDIT // 2
    return tokens * footprint.kept * (len(footprint.layers) - footprint.start) * footprint.itemsize


def _kept(config: Any) -> int:
    heads = getattr(config, "num_attention_heads", None) or 1
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * (getattr(config, "num_key_value_heads", None) or heads) * width)


def second_moments_bytes(shape: Shape, options: MethodOptions, num_tokens: int) -> int:
    """Bytes of the statistics of one module beside its moments, while a turn makes new ones from the old.

    Args:
        shape: ``(d_in, d_out)`` of the module.
        options: Which statistics are kept, and in which form.
        num_tokens: Tokens of a turn whose keys are in memory.
    """
    (d_in, d_out), total = shape, 0
    if options.preserves:
        rows = d_in if is_exact(options.preserve, d_in) else 3 * options.preserve_rank  # a sketch grows by a block before it shrinks
        copies = 3 + options.preserves_text + options.holds_neighbours + (options.passes > 1)  # further passes use the system of the first one
        total += copies * 8 * rows * d_in + 4 * num_tokens * d_in
    if options.weighs_outputs:
        total += 3 * 8 * min(PREDICTED_TOKENS, d_out) * d_out
    return total + (3 * 8 * d_out**2 if options.whiten else 0)


def _work_bytes(footprint: Footprint, tokens: int, rows: int, streamed: int, masters: bool) -> int:
    """The largest of what a forward pass, a backward pass, the head, a solve and a checkpoint need. They never run at the same time."""
    item, d, inner = footprint.itemsize, footprint.hidden, footprint.inner
    forward = tokens * (6 * d + 3 * inner) * item + footprint.widest
    kept_layers = len(footprint.layers) - footprint.start if streamed <= footprint.start else 1
    back = kept_layers * tokens * (12 * d + 5 * inner) * item + 2 * tokens * (d + inner) * item
    chunk = min(rows, tokens, max(1, HEAD_CHUNK_ELEMENTS // footprint.vocabulary))
    head = chunk * footprint.vocabulary * (item + 12)
    captured = rows * footprint.modules * (d + inner) * 4
    solve = rows * (d + inner) * 40 + (0 if masters or item == 4 else 2 * footprint.widest)
    checkpoint = sum(footprint.edited) + (footprint.masters if masters else 0)
    return max(captured + max(forward, back, head, solve), checkpoint)


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _group_limits() -> list[int]:
    """Bytes that the control groups of this process, of either version, still allow."""
    found = []
    for limit, usage in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            most, used = (Path("/sys/fs/cgroup", name).read_text().strip() for name in (limit, usage))
        except OSError:
            continue
        if most.isdigit():
            found.append(int(most) - int(used))
    return found
