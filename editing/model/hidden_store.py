"""A store for hidden states that a later pass over the layers needs again: in memory, and past a limit in a temporary file.

The file has no name and is gone with the process. It is written and read, not mapped: a full disk is then an error, not a
signal that ends the process.
"""

import os
import tempfile
from collections.abc import Iterable
from typing import IO

import torch
from torch import Tensor

from editing.errors import InputError


class HiddenStore:
    """Tensors by number.

    Args:
        limit: Bytes that may be kept in memory; ``None`` for no limit.
        move: Copy each tensor to the CPU's memory, which leaves an accelerator's memory free.
    """

    def __init__(self, *, limit: int | None = None, move: bool = False) -> None:
        self._tensors: dict[int, Tensor | _OnDisk] = {}
        self._limit, self._move = limit, move
        self._bytes = 0
        self._file: IO[bytes] | None = None

    def put(self, number: int, tensor: Tensor) -> None:
        """Store a tensor under a number that is not used yet.

        Raises:
            InputError: It had to go to the disk, which is full.
        """
        size = tensor.numel() * tensor.element_size()
        if self._limit is not None and self._bytes + size > self._limit:
            self._tensors[number] = self._write(tensor)
            return
        self._bytes += size
        self._tensors[number] = tensor.cpu() if self._move else tensor

    def get(self, number: int) -> Tensor:
        """The tensor with a number.

        Raises:
            InputError: It is on disk and cannot be read.
        """
        stored = self._tensors[number]
        return stored.read() if isinstance(stored, _OnDisk) else stored

    @property
    def num_on_disk(self) -> int:
        """Tensors that are on disk."""
        return sum(isinstance(stored, _OnDisk) for stored in self._tensors.values())

    def select(self, numbers: Iterable[int]) -> "HiddenStore":
        """The chosen tensors, numbered from 0; nothing is copied."""
        chosen = HiddenStore()
        chosen._tensors = {i: self._tensors[number] for i, number in enumerate(numbers)}
        return chosen

    @staticmethod
    def concatenate(stores: Iterable["HiddenStore"]) -> "HiddenStore":
        """The tensors of several stores, numbered from 0; nothing is copied."""
        joined = HiddenStore()
        joined._tensors = dict(enumerate(tensor for store in stores for _, tensor in sorted(store._tensors.items(), key=lambda item: item[0])))
        return joined

    def copied(self) -> "HiddenStore":
        """The same with own copies in memory, not views that keep a large tensor alive."""
        own = HiddenStore()
        own._tensors = {number: self.get(number).clone() for number in self._tensors}
        return own

    def _write(self, tensor: Tensor) -> "_OnDisk":
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="ultraedit-")  # noqa: SIM115  # open as long as its tensors are needed
        offset = self._file.seek(0, os.SEEK_END)
        content = tensor.detach().cpu().contiguous()
        try:
            self._file.write(content.flatten().view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"{tempfile.gettempdir()}: hidden states that do not fit into the memory budget could not be written ({error.strerror}); "
                "free some space, set TMPDIR to a larger disk, or give a larger --device-memory or a smaller --lookahead"
            ) from None
        return _OnDisk(self._file, offset, content.shape, content.dtype)


class _OnDisk:
    """Where in a store's file a tensor is."""

    def __init__(self, file: IO[bytes], offset: int, shape: torch.Size, dtype: torch.dtype) -> None:
        self._file, self._offset, self._shape, self._dtype = file, offset, shape, dtype

    def read(self) -> Tensor:
        tensor = torch.empty(self._shape, dtype=self._dtype)
        buffer = tensor.flatten().view(torch.uint8).numpy()
        self._file.seek(self._offset)
        if self._file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
            raise InputError(f"{tempfile.gettempdir()}: hidden states that were written there could not be read; check the disk, or set TMPDIR")
        return tensor
