"""Returns freed memory to the system, where the C library would keep it for later.

glibc returns a freed block at once if it is larger than a threshold. The threshold grows with what is freed, up to 32 MB. The
activations of each layer then leave holes that stay resident: up to 250 MB in a process that is to use 1 GB (*measured*,
docs/LOG.md). A process within a budget fixes the threshold, and trims the heap after each pass over the layers.
"""

import ctypes
import functools
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Options of mallopt(3)."""


def return_large_blocks() -> None:
    """From now on return blocks of 2 MB and more when they are freed. A page that is used again then costs a page fault."""
    if library := _glibc():
        library.mallopt(_M_MMAP_THRESHOLD, 2**21)
        library.mallopt(_M_TRIM_THRESHOLD, 2**23)


def trim() -> None:
    """Return all that is free in the heap; takes milliseconds."""
    if library := _glibc():
        library.malloc_trim(0)


@functools.cache
def _glibc() -> Any:
    """The C library; ``None`` if it is not glibc."""
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
