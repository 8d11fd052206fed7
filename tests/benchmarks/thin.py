"""A module's shift as thin factors, against a singular value decomposition of the whole matrix: processor time, memory and what is lost.

python -m tests.benchmarks.thin [D_OUT D_IN ROWS]     2048 8192 500 by default; each way in a process of its own
"""

import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from editing.low_rank import factor, rounding


def shifted(d_out: int, d_in: int, rows: int) -> tuple[Tensor, float]:
    """What a run has of a shift: the difference of two float32 weights, and the rounding that is in it."""
    dice = torch.Generator().manual_seed(0)
    weight = torch.randn(d_out, d_in, generator=dice) / d_in**0.5
    shift = torch.randn(d_out, rows, generator=dice) @ torch.randn(rows, d_in, generator=dice) * (0.01 / (rows * d_in) ** 0.5)
    edited = weight + shift
    return edited - weight, rounding(edited)


def thin(matrix: Tensor, tolerance: float) -> Tensor:
    return factor(matrix, tolerance=tolerance).dense()


def thin_to_32(matrix: Tensor, tolerance: float) -> Tensor:
    return factor(matrix, rank=32).dense()


def dense(matrix: Tensor, tolerance: float) -> Tensor:
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    rank = int((values.square().flip(0).cumsum(0).flip(0).sqrt() > tolerance).sum())
    return (left[:, :rank] * values[:rank] @ right[:rank]).float()


def measured(way: Callable[[Tensor, float], Tensor], shape: tuple[int, int, int]) -> str:
    torch.set_num_threads(1)
    matrix, tolerance = shifted(*shape)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, began = _resident("VmRSS"), time.process_time()
    found = way(matrix, tolerance)
    seconds, more = time.process_time() - began, _resident("VmHWM") - before
    error = float((found - matrix).norm() / matrix.norm())
    return f"{way.__name__:10} {seconds:7.1f} processor seconds   {more:6.0f} MB more   relative error {error:.1e}"


def _resident(field: str) -> float:
    """Memory of this process in MB: now, ``VmRSS``, or at its peak, ``VmHWM``."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main() -> None:
    d_out, d_in, rows = map(int, sys.argv[1:4]) if len(sys.argv) > 3 else (2048, 8192, 500)
    for way in (thin, thin_to_32, dense):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            print(pool.submit(measured, way, (d_out, d_in, rows)).result(), flush=True)


if __name__ == "__main__":
    main()
