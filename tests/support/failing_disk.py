"""A disk that fails from some moment on."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager


def fail_syncs(count: int, number: int) -> None:
    """Make this process's ``fsync`` fail from a call on: a full disk, or one that is broken.

    Args:
        count: The first call that fails, from 1.
        number: The error, as ``errno.ENOSPC``.
    """
    plain, calls = os.fsync, [0]

    def failing(handle: int) -> None:
        calls[0] += 1
        if calls[0] >= count:
            raise OSError(number, os.strerror(number))
        plain(handle)

    os.fsync = failing


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Every write beyond it fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
