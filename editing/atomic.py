"""All or nothing: a turn that is interrupted or refused leaves weights and statistics as they were, to the bit; a folder is whole or not there."""

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    received: list[Any] = []
    previous = signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if received:
            signal.raise_signal(signal.SIGINT)


def put_back(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write copies that were made earlier, wherever they are, into the tensors again."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


@contextmanager
def restored_unless(complete: Callable[[], bool], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Restore tensors if the block fails before it is complete.

    Args:
        complete: Whether the block has done all that it should; asked when it fails.
        tensors: Tensors that the block changes in place. A copy of them is kept until the block ends.
    """
    before = [tensor.clone() for tensor in tensors]
    try:
        yield
    except BaseException:
        if not complete():
            with uninterrupted():
                put_back(tensors, before)
        raise


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name at the end of the block; nothing is left of it if the block fails.

    Args:
        output: The folder to make. Its parents are made if missing.
    """
    partial = output.absolute().with_name(f".{output.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
