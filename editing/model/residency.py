"""When the weights of which decoder layers are in memory.

A pass over layers goes segment by segment: the weights of one segment are in memory, all batches go through it, then the next
segment comes. Where every layer stays in memory there is one segment.
"""

from collections.abc import Generator
from typing import Protocol

import torch

from editing.model.hidden_store import HiddenStore


class Residency(Protocol):
    """Brings the weights of layers into memory when a pass needs them."""

    @property
    def device(self) -> torch.device | None:
        """Where the layers run; ``None`` for the device of their own weights."""
        ...

    def segments(self, first: int, stop: int, *, down: bool = False) -> Generator[range, None, None]:
        """Cut layers ``first .. stop - 1`` into segments, from below or, with ``down``, from above.

        The weights of a segment stay in memory until the next one is requested or the generator is closed.
        """
        ...

    def holds(self, first: int, stop: int) -> bool:
        """Whether layers ``first .. stop - 1`` are one segment whose weights stay in memory."""
        ...

    def hidden_store(self) -> HiddenStore:
        """A store for hidden states that a later segment or pass needs."""
        ...


class Resident:
    """All layers stay in memory."""

    device: torch.device | None = None

    def segments(self, first: int, stop: int, *, down: bool = False) -> Generator[range, None, None]:
        yield range(first, stop)

    def holds(self, first: int, stop: int) -> bool:
        return True

    def hidden_store(self) -> HiddenStore:
        return HiddenStore()
