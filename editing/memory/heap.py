"""Freed memory goes back to the system, where the C library would keep it for later.

glibc's threshold for giving a block back at once grows with what is freed, to 32 MB. Then each layer's activations leave holes
that stay resident: up to 250 MB of them in a process that is to have 1 GB (*measured*, docs/LOG.md). A process that lives
within a budget fixes the threshold, and trims the heap after each pass over the layers.
"""

import ctypes
import functools
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Options of mallopt(3)."""


def give_back_large_blocks() -> None:
    """Give blocks of 2 MB and more back when they are freed. A page that is used again then costs a page fault."""
    if library := _glibc():
        library.mallopt(_M_MMAP_THRESHOLD, 2**21)
        library.mallopt(_M_TRIM_THRESHOLD, 2**23)


def trim() -> None:
    """Give back whatever is free in the heap; milliseconds."""
    if library := _glibc():
        library.malloc_trim(0)


@functools.cache
def _glibc() -> Any:
    """The C library; ``None`` where it is another one."""
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
