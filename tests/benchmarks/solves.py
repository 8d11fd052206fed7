"""The solve alone, at the shapes of the modules that the paper edits: baseline's d_in x d_in system against row form.

Rows are random: time does not depend on their values, and keys of unit scale keep the baseline's float32 system well
conditioned, so both shifts can be compared.
"""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from editing.method.shift import Shift, gram_matrix, solve_rows
from tests.benchmarks.baseline import solve_dense
from tests.benchmarks.workload import relative_difference, seconds

NUM_ROWS = 400
LARGE = 6000
"""Above this ``d_in`` the baseline takes tens of seconds on a CPU: it runs once there, and not at all in a quick run."""
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class SolveShape:
    """One edited linear of the paper."""

    model: str
    module: str
    d_in: int
    d_out: int


SHAPES = (
    SolveShape("GPT-J 6B", "fc_out", 16384, 4096),
    SolveShape("Mistral 7B v0.3", "down_proj", 14336, 4096),
    SolveShape("Llama 3 8B", "gate_proj", 4096, 14336),
    SolveShape("Qwen2.5 7B", "gate_proj", 3584, 18944),
    SolveShape("Phi-4 14B", "down_proj", 17920, 5120),
    SolveShape("Gemma 3 27B", "gate_proj", 5376, 21504),
)


@dataclass(frozen=True)
class SolveTime:
    """Median seconds of both for one shape, and the relative difference of the shifts on random directions."""

    shape: SolveShape
    baseline: float
    ours: float
    difference: float


def time_solves(*, quick: bool, device: torch.device = _CPU, shapes: Sequence[SolveShape] = SHAPES) -> Iterator[SolveTime]:
    """Time both solves shape by shape, on a device."""
    for shape in shapes:
        if not (quick and shape.d_in > LARGE):
            yield _time_shape(shape, device, repetitions=1 if quick else 3)
            gc.collect()


@torch.no_grad()
def error_in_float64(shape: SolveShape, device: torch.device) -> float:
    """Relative error of the row form's shift on random directions, against the d_in x d_in system solved in float64 on the same device."""
    keys, targets, directions = _problem(shape, device)
    thin = solve_rows(keys, gram_matrix(keys), targets)
    return relative_difference(thin.left @ (thin.right @ directions), solve_dense(keys.double(), targets.double() @ directions.double()))


def _problem(shape: SolveShape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Keys ``(n, d_in)``, targets ``(n, d_out)`` and directions ``(d_out, 16)``; the same on every device."""
    generator = torch.Generator().manual_seed(0)
    keys, targets = (torch.randn(NUM_ROWS, width, generator=generator).to(device) for width in (shape.d_in, shape.d_out))
    return keys, targets, torch.randn(shape.d_out, 16, generator=generator).to(device)


@torch.no_grad()
def _time_shape(shape: SolveShape, device: torch.device, repetitions: int) -> SolveTime:
    keys, targets, directions = _problem(shape, device)
    weight = torch.empty(shape.d_out, shape.d_in, device=device).zero_()  # touched once, unlike torch.zeros
    thin = solve_rows(keys, gram_matrix(keys), targets)  # also a warm-up
    expected = thin.left @ (thin.right @ directions)
    times = [seconds(lambda: _apply_rows(weight, keys, targets)) for _ in range(repetitions)]
    baseline_times, differences = [], []
    once = shape.d_in > LARGE and device.type == "cpu"
    for _ in range(1 if once else repetitions):
        weight.zero_()
        baseline_times.append(seconds(lambda: _apply_dense(weight, keys, targets)))
        differences.append(relative_difference(weight.T @ directions, expected))
    return SolveTime(shape, median(baseline_times), median(times), max(differences))


def _apply_dense(weight: Tensor, keys: Tensor, targets: Tensor) -> None:
    weight += solve_dense(keys, targets).T


def _apply_rows(weight: Tensor, keys: Tensor, targets: Tensor) -> None:
    shift: Shift = solve_rows(keys, gram_matrix(keys), targets)
    shift.add_to(weight)
