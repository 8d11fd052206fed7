"""Rows of ``make gpu-check``: what a check expected and found, timed, with the peak of the device's memory.

A check is a function that yields findings. The time and the memory of a row are what was spent since the row before it.
"""

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from editing.memory.budget import peak_bytes, show_size
from tests.benchmarks.workload import synchronize

Result = Literal["passed", "failed", "skipped", "noted"]
"""``noted`` is a figure for which there is no limit."""


@dataclass(frozen=True)
class Setting:
    """What checks are given.

    Attributes:
        device: What is checked.
        small: Tiny shapes only.
        scratch: Empty folder for models and runs; up to 20 GB are written there.
    """

    device: torch.device
    small: bool
    scratch: Path

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def is_accelerator(self) -> bool:
        """Whether the device has memory of its own: a GPU, or the emulated accelerator of the tests."""
        return self.device.type != "cpu"


@dataclass(frozen=True)
class Finding:
    """What a check looked at, what it expected and found."""

    name: str
    expected: str
    found: str
    result: Result


@dataclass(frozen=True)
class Row:
    """A finding of a check, with its cost.

    Attributes:
        check: Name of the check.
        name: What was looked at.
        expected: What should have been found.
        found: What was found, the reason why it was skipped, or the error.
        result: How it ended.
        seconds: Wall time.
        peak_bytes: Of a GPU the most that tensors took, of the CPU the largest resident memory of the process.
    """

    check: str
    name: str
    expected: str
    found: str
    result: Result
    seconds: float
    peak_bytes: int


Check = Callable[[Setting], Iterable[Finding]]


def held(name: str, expected: str, found: str, holds: bool) -> Finding:
    """A finding that passes if something holds."""
    return Finding(name, expected, found, "passed" if holds else "failed")


def below(name: str, error: float, limit: float, *, what: str = "relative error of the shifts", more: str = "") -> Finding:
    """A finding that passes if an error is below a limit. One that is not a number is not."""
    return held(name, f"{what} < {limit:.0e}", f"{error:.1e}" + (f"; {more}" if more else ""), not math.isnan(error) and error < limit)


def noted(name: str, found: str, expected: str = "") -> Finding:
    """A figure without a limit."""
    return Finding(name, expected, found, "noted")


def skipped(name: str, expected: str, reason: str) -> Finding:
    """What could not be looked at here."""
    return Finding(name, expected, reason, "skipped")


def run_check(name: str, check: Check, setting: Setting) -> Iterator[Row]:
    """The rows of a check. One that raises ends with a failed row, also where the device itself no longer answers."""
    began = time.perf_counter()
    try:
        reset_peak(setting.device)
        for finding in check(setting):
            synchronize()
            seconds = time.perf_counter() - began
            yield Row(name, finding.name, finding.expected, finding.found, finding.result, seconds, peak(setting.device))
            reset_peak(setting.device)
            began = time.perf_counter()
    except Exception as error:
        yield Row(name, "the check itself", "runs to its end", one_line(error), "failed", time.perf_counter() - began, _peak_if_known(setting.device))


def one_line(error: BaseException) -> str:
    """An error's kind and its most telling line: the last one of a traceback from another process, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1] if 'Traceback' in str(error) else lines[0]}"


def reset_peak(device: torch.device) -> None:
    """Let the peak begin again. A CPU whose system does not allow it has the peak of the whole process."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.init()  # without it there are no statistics to reset
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Bytes: of a GPU the most that tensors took, of the CPU the largest resident memory of the process, since :func:`reset_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()


def as_table(rows: Iterable[Row]) -> str:
    """Rows as Markdown."""
    lines = ["| check | what | expected | found | result | s | peak |", "|---|---|---|---|---|---:|---:|"]
    return "\n".join([*lines, *map(as_line, rows)])


def as_line(row: Row) -> str:
    """A row as a line of :func:`as_table`."""
    texts = (text.replace("|", "\\|") for text in (row.check, row.name, row.expected, row.found))
    return f"| {' | '.join(texts)} | {row.result} | {row.seconds:.1f} | {show_size(row.peak_bytes)} |"


def _peak_if_known(device: torch.device) -> int:
    try:
        return peak(device)
    except RuntimeError:  # of a GPU after an error that ends its context
        return 0
