"""Consecutive ranges."""

from collections.abc import Iterable


def consecutive(sizes: Iterable[int], start: int = 0) -> list[range]:
    """Ranges of the given sizes, each of which begins where the one before it ends."""
    ranges = []
    for size in sizes:
        ranges.append(range(start, start + size))
        start += size
    return ranges
