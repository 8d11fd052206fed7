"""All or nothing: a turn that is interrupted or refused on its way leaves what was there before, to the bit."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    held: list[Any] = []
    previous = signal.signal(signal.SIGINT, lambda *received: held.append(received))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if held:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def restored_unless(complete: Callable[[], bool], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Give tensors their values from before the block back if it fails before it is complete. Holds a copy of them meanwhile."""
    before = [tensor.clone() for tensor in tensors]
    try:
        yield
    except BaseException:
        if not complete():
            with uninterrupted():
                for tensor, values in zip(tensors, before, strict=True):
                    tensor.copy_(values)
        raise
