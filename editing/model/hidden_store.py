"""Hidden states put aside until they are asked for again: in memory, and past a limit in a temporary file.

The file has no name and is gone with the process. It is written and read, not mapped: a full disk is then an error and
not a signal that ends the process.
"""

import os
import tempfile
from collections.abc import Iterable
from typing import IO

import torch
from torch import Tensor

from editing.errors import InputError


class Shelf:
    """Numbered places for tensors.

    Args:
        limit: Bytes that may lie in memory; ``None`` for no limit.
        move: Copy each tensor to the CPU's memory, which leaves an accelerator's to others.
    """

    def __init__(self, *, limit: int | None = None, move: bool = False) -> None:
        self._places: dict[int, Tensor | _OnDisk] = {}
        self._limit, self._move = limit, move
        self._bytes = 0
        self._file: IO[bytes] | None = None

    def put(self, place: int, tensor: Tensor) -> None:
        """Put a tensor in a free place.

        Raises:
            InputError: It had to go to the disk, which is full.
        """
        size = tensor.numel() * tensor.element_size()
        if self._limit is not None and self._bytes + size > self._limit:
            self._places[place] = self._write(tensor)
            return
        self._bytes += size
        self._places[place] = tensor.cpu() if self._move else tensor

    def get(self, place: int) -> Tensor:
        """The tensor in a place."""
        held = self._places[place]
        return held.read() if isinstance(held, _OnDisk) else held

    @property
    def spilled(self) -> int:
        """Tensors that lie on disk."""
        return sum(isinstance(held, _OnDisk) for held in self._places.values())

    def select(self, places: Iterable[int]) -> "Shelf":
        """The tensors of some places, numbered anew from 0; nothing is copied."""
        chosen = Shelf()
        chosen._places = {i: self._places[place] for i, place in enumerate(places)}
        return chosen

    @staticmethod
    def join(shelves: Iterable["Shelf"]) -> "Shelf":
        """All tensors of several shelves, numbered anew from 0; nothing is copied."""
        joined = Shelf()
        joined._places = dict(enumerate(held for shelf in shelves for _, held in sorted(shelf._places.items(), key=lambda item: item[0])))
        return joined

    def detached(self) -> "Shelf":
        """The same with tensors of their own in memory, not views that keep a large one alive."""
        own = Shelf()
        own._places = {place: self.get(place).clone() for place in self._places}
        return own

    def _write(self, tensor: Tensor) -> "_OnDisk":
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="ultraedit-")  # noqa: SIM115  # it lives as long as what is on it
        offset = self._file.seek(0, os.SEEK_END)
        content = tensor.detach().cpu().contiguous()
        try:
            self._file.write(content.flatten().view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"{tempfile.gettempdir()}: hidden states that the memory budget has no room for could not be written ({error.strerror}); "
                "make room, set TMPDIR to a larger disk, or give a larger --device-memory or a smaller --lookahead"
            ) from None
        return _OnDisk(self._file, offset, content.shape, content.dtype)


class _OnDisk:
    """Where a tensor lies in a shelf's file."""

    def __init__(self, file: IO[bytes], offset: int, shape: torch.Size, dtype: torch.dtype) -> None:
        self._file, self._offset, self._shape, self._dtype = file, offset, shape, dtype

    def read(self) -> Tensor:
        tensor = torch.empty(self._shape, dtype=self._dtype)
        buffer = tensor.flatten().view(torch.uint8).numpy()
        self._file.seek(self._offset)
        if self._file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
            raise InputError(f"{tempfile.gettempdir()}: hidden states that were written there could not be read back")
        return tensor
