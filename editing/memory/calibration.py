"""How fast this machine multiplies and reads, measured in a second; for a forecast of a run and for the choice of a lookahead."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from editing.memory.budget import Footprint, MemoryPlan, show_size
from editing.model.matmul import full_speed

_READ_BYTES = 2**28
_TOKENS = 1024
_MAX_LOOKAHEAD = 32
"""Most turns in a window. A run is checkpointed between windows."""

USUAL_LOOKAHEAD = 4
TOKENS_AN_EDIT = 17
ROWS_AN_EDIT = 3
"""Tokens and answer tokens of an edit, about, in CounterFact and zsRE; an estimate for any other input."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine does in a second.

    Attributes:
        flops: Floating-point operations of a large matrix product in the model's precision.
        read: Bytes read from the model's files, or from the page cache if they are in it.
    """

    flops: float
    read: float

    @classmethod
    def measure(cls, footprint: Footprint, dtype: torch.dtype, device: torch.device, file: Path | None) -> "Rates":
        """Measure on the model's shapes and its own file.

        Args:
            footprint: Sizes of the model.
            dtype: Precision of its weights.
            device: Where its layers run.
            file: A file of its weights; ``None`` if nothing is read.
        """
        left = torch.randn(_TOKENS, footprint.hidden, device=device).to(dtype)
        right = torch.randn(footprint.inner, footprint.hidden, device=device).to(dtype)
        with torch.no_grad(), full_speed(device):
            seconds = min(_seconds(lambda: _product(left, right, device)) for _ in range(2))
        return cls(2 * _TOKENS * right.numel() / seconds, _read_rate(file) if file else float("inf"))


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run within a memory plan will take.

    Attributes:
        lookahead: Turns that go through the streamed layers in one pass: enough to hide reading behind computing, and chosen
            so that the last window is not a short one, which would read all layers for a few turns.
        read_seconds: Time to read the streamed layers once.
        pass_seconds: Time to compute one pass of ``lookahead`` turns through them.
        hidden_bytes: Size of the hidden states of ``lookahead`` turns.
        turn_seconds: Time of one turn, with its share of the pass.
    """

    lookahead: int
    read_seconds: float
    pass_seconds: float
    hidden_bytes: int
    turn_seconds: float

    @classmethod
    def of(
        cls, footprint: Footprint, plan: MemoryPlan, rates: Rates, edits_per_turn: int, *, forms: int = 1, num_edits: int | None = None
    ) -> "Forecast":
        """Forecast from sizes and rates.

        Args:
            footprint: Sizes of the model.
            plan: Where its layers are.
            rates: Speed of the machine.
            edits_per_turn: Edits of a turn.
            forms: Ways in which each of them is written.
            num_edits: Edits to come; ``None`` if the number is not known.
        """
        tokens = edits_per_turn * forms * TOKENS_AN_EDIT
        prefix, suffix = sum(footprint.layers[: plan.start]), sum(footprint.layers[plan.start :])
        prefix_seconds = 2 * tokens * prefix / footprint.itemsize / rates.flops
        below = max(0, plan.streamed - plan.start)
        streamed_suffix = sum(footprint.layers[plan.start : plan.start + below])
        read = (plan.read_bytes - streamed_suffix) / rates.read
        lookahead = USUAL_LOOKAHEAD
        if plan.streamed:
            lookahead = _evened(_clamp(2 * read / max(prefix_seconds, 1e-9)), None if num_edits is None else -(-num_edits // edits_per_turn))
        rows = edits_per_turn * forms * ROWS_AN_EDIT
        head = 6 * rows * footprint.vocabulary * footprint.hidden / rates.flops
        passes = 6 if below else 4  # forward and back; once more forward where the graph of the suffix does not fit
        own = max(passes * tokens * suffix / footprint.itemsize / rates.flops, 2 * streamed_suffix / rates.read)
        shared = max(prefix_seconds * lookahead, read) / lookahead
        hidden = lookahead * tokens * footprint.hidden * footprint.itemsize
        return cls(lookahead, read, prefix_seconds * lookahead, hidden, own + head + shared)


def outlook(footprint: Footprint, plan: MemoryPlan, forecast: Forecast, *, where: str, pinned: bool, lookahead: int) -> list[tuple[str, str]]:
    """What a run within a budget will do, for a person: topics, and a line on each.

    Args:
        footprint: Sizes of the model.
        plan: Where its layers are.
        forecast: What the run will take.
        where: What the layers are read from, in words.
        pinned: Whether they are kept in pinned CPU memory once they have been read.
        lookahead: Turns that will go through them in one pass.
    """
    uses = ", ".join(f"{name} {show_size(size)}" for name, size in plan.breakdown.items() if size)
    last = plan.num_layers - 1
    lines = [("memory", f"{show_size(plan.budget)} allowed, {show_size(plan.peak)} expected: {uses}")]
    if not plan.streamed:
        lines.append(("layers", "all stay in memory"))
    else:
        stay = f"layers {plan.streamed} to {last} stay" if plan.streamed <= last else "no layer stays"
        source = f"{where}, then from pinned CPU memory" if pinned else where
        lines.append(("layers", f"{stay}; 0 to {plan.streamed - 1} are read from {source}, {show_size(plan.read_bytes)} a pass"))
        lines.append(("lookahead", _lookahead(plan, forecast, lookahead)))
    masters = "kept" if plan.masters and footprint.masters else "not needed in float32" if not footprint.masters else "not kept: no room for them"
    lines.append(("forecast", f"about {forecast.turn_seconds:.1f} s a turn; float32 masters {masters}"))
    return lines


def _lookahead(plan: MemoryPlan, forecast: Forecast, lookahead: int) -> str:
    share = lookahead / forecast.lookahead
    waiting = forecast.hidden_bytes * share
    place = "memory" if waiting <= plan.hidden_limit else f"memory up to {show_size(plan.hidden_limit)}, then on disk"
    beside = f"about {forecast.read_seconds:.1f} s of reading beside {forecast.pass_seconds * share:.1f} s of computing"
    return f"{lookahead} turn{'s' * (lookahead > 1)} a pass: {beside}; {show_size(waiting)} of hidden states are kept in {place}"


def _clamp(turns: float) -> int:
    return max(USUAL_LOOKAHEAD, min(_MAX_LOOKAHEAD, -int(-turns // 1)))


def _evened(lookahead: int, turns: int | None) -> int:
    """Turns in a window, for windows of about the same length."""
    if turns is None:
        return lookahead
    return max(1, min(_MAX_LOOKAHEAD, -(-turns // max(1, round(turns / lookahead)))))


def _product(left: torch.Tensor, right: torch.Tensor, device: torch.device) -> None:
    F.linear(left, right)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _read_rate(file: Path) -> float:
    buffer = bytearray(2**24)
    done = 0
    began = time.perf_counter()
    with file.open("rb", buffering=0) as source:
        while done < _READ_BYTES and (count := source.readinto(buffer)):
            done += count
    return max(1, done) / (time.perf_counter() - began)
