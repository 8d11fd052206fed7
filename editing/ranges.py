"""Ranges laid end to end."""

from collections.abc import Iterable


def consecutive(sizes: Iterable[int], start: int = 0) -> list[range]:
    """Ranges of the given sizes laid end to end."""
    ranges = []
    for size in sizes:
        ranges.append(range(start, start + size))
        start += size
    return ranges
