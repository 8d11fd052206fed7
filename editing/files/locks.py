"""A lock that processes of a machine take in turn."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Of several processes on a machine, such as the shards of a model, one works and the others wait.

    Args:
        path: The lock's file, which stays. The system takes the lock back from a process that ends.
    """
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
