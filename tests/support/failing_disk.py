"""A disk that fails from some moment on."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class FailingSync:
    """Called in a process, makes its ``fsync`` fail from the count-th call on: a full disk, or one that is broken.

    Attributes:
        count: The first call that fails, from 1.
        number: The error, as ``errno.ENOSPC``.
    """

    count: int
    number: int

    def __call__(self) -> None:
        plain, calls = os.fsync, [0]

        def failing(handle: int) -> None:
            calls[0] += 1
            if calls[0] >= self.count:
                raise OSError(self.number, os.strerror(self.number))
            plain(handle)

        os.fsync = failing
