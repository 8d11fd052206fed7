"""When which decoder layers have their weights in memory.

A pass over layers goes segment by segment: the weights of one segment are in place, all batches go through it, then the
next one comes. Where every layer is resident there is one segment, and nothing else to know.
"""

from collections.abc import Generator
from typing import Protocol

import torch

from editing.model.hidden_store import Shelf


class Residency(Protocol):
    """Puts the weights of layers in place."""

    @property
    def device(self) -> torch.device | None:
        """Where the layers run; ``None`` if their own weights tell."""
        ...

    def segments(self, first: int, stop: int, *, down: bool = False) -> Generator[range, None, None]:
        """Cut layers ``first .. stop - 1`` into segments, from below or, with ``down``, from above.

        The weights of a segment are in place until the next one is asked for or the generator is closed.
        """
        ...

    def holds(self, first: int, stop: int) -> bool:
        """Whether layers ``first .. stop - 1`` are one segment, whose weights stay in place."""
        ...

    def shelf(self) -> Shelf:
        """Room for hidden states that a later segment or pass will ask for."""
        ...


class Resident:
    """All layers are in memory all the time."""

    device: torch.device | None = None

    def segments(self, first: int, stop: int, *, down: bool = False) -> Generator[range, None, None]:
        yield range(first, stop)

    def holds(self, first: int, stop: int) -> bool:
        return True

    def shelf(self) -> Shelf:
        return Shelf()
