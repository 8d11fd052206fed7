"""A disk that fails from some moment on."""

import os


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
