"""Wall time of a run by phase."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

PHASES = ("load", "warm_up", "capture", "targets", "solve", "refine", "apply", "watch", "checkpoint", "save", "evaluation", "total")


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the wall time of a block to a phase, also where it ends by an error."""
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] += time.perf_counter() - began
