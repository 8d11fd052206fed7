"""Weights read from their files into memory that is already there, again and again.

Files are read, not mapped: a read costs one copy in the background, a hundredth of the time in which the weights are then
used (docs/LOG.md), while touching a mapping of a file that somebody has cut short ends the process without a word.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from editing.errors import ModelError
from editing.files.pretrained import fingerprint_step, load_config, make_skeleton
from editing.files.weights import Stored, WeightFiles

_READ_WHOLE = 2**21
"""Bytes of a weight that are read in one go where some of its elements are wanted: faster than a read for each of them."""


class WeightReader:
    """Reads weights, and notices when their files change.

    Args:
        files: A model's files.

    Attributes:
        files: As given.
        bytes_read: Bytes read so far.
    """

    def __init__(self, files: WeightFiles) -> None:
        self.files = files
        self.bytes_read = 0
        self._open: dict[Path, tuple[int, tuple[int, int]]] = {}
        for stored in map(files.stored, files.shapes):
            if stored.path not in self._open:
                descriptor = os.open(stored.path, os.O_RDONLY)
                self._open[stored.path] = descriptor, _stamp(descriptor)

    def close(self) -> None:
        """Let go of the files."""
        for descriptor, _ in self._open.values():
            os.close(descriptor)
        self._open = {}

    def check_in_place(self) -> None:
        """See that the files under their names are still those that were opened, before they are copied by name.

        Raises:
            ModelError: One is not.
        """
        for path, (descriptor, stamp) in self._open.items():
            opened, there = os.fstat(descriptor), path.stat() if path.is_file() else None
            if there is None or (opened.st_ino, opened.st_dev) != (there.st_ino, there.st_dev) or _stamp(descriptor) != stamp:
                raise ModelError(
                    f"{path}: has been replaced or changed since the run began, so no edited copy can be made of it; restore it, then --resume"
                )

    def read(self, name: str, target: Tensor) -> None:
        """Read a weight into memory of its shape.

        Args:
            name: The parameter's name.
            target: Contiguous, in the CPU's memory; in another precision than the file's it takes a detour.

        Raises:
            ModelError: The file has changed since it was opened.
        """
        stored = self.files.stored(name)
        direct = target if stored.dtype == target.dtype else torch.empty(stored.shape, dtype=stored.dtype)
        self._read(stored, stored.offset, direct)
        if direct is not target:
            target.copy_(direct)

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A weight in memory of its own."""
        target = torch.empty(self.files.stored(name).shape, dtype=dtype)
        self.read(name, target)
        return target

    def rows(self, name: str, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows ``(u, d)`` of a matrix, given their numbers ``(u,)``."""
        stored = self.files.stored(name)
        found = torch.empty(len(indices), stored.shape[1], dtype=stored.dtype)
        width = stored.shape[1] * stored.dtype.itemsize
        for row, index in zip(found, indices.tolist(), strict=True):
            self._read(stored, stored.offset + index * width, row)
        return found.to(dtype)

    def samples(self, dtype: torch.dtype) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
        """Of every weight, for :func:`editing.files.pretrained.fingerprint_of`."""
        for name, shape in self.files.shapes.items():
            yield name, shape, self.every(name, fingerprint_step(torch.Size(shape).numel()), dtype)

    def every(self, name: str, step: int, dtype: torch.dtype) -> Tensor:
        """Every ``step`` th element of a weight."""
        stored = self.files.stored(name)
        count = torch.Size(stored.shape).numel()
        if count * stored.dtype.itemsize <= _READ_WHOLE:
            return self.tensor(name, stored.dtype).flatten()[::step].to(dtype)
        found = torch.empty(-(-count // step), dtype=stored.dtype)
        for place, element in enumerate(found.split(1)):
            self._read(stored, stored.offset + place * step * stored.dtype.itemsize, element)
        return found.to(dtype)

    def _read(self, stored: Stored, offset: int, target: Tensor) -> None:
        descriptor, stamp = self._open[stored.path]
        buffer = target.flatten().view(torch.uint8).numpy().data
        done = 0
        while done < len(buffer):  # one call reads 2 GB at most
            read = os.preadv(descriptor, [buffer[done:]], offset + done)
            if not read:
                break
            done += read
        self.bytes_read += done
        if done < len(buffer) or _stamp(descriptor) != stamp:
            raise ModelError(f"{stored.path}: has changed while it was in use, so what was read of it is not used; restore it, then --resume the run")


def read_weights(folder: Path, modules: Iterable[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights ``(d_out, d_in)`` of some modules of a model's folder, by module name, and nothing else of it."""
    skeleton = make_skeleton(folder, load_config(folder), dtype)
    with WeightFiles(folder, skeleton) as files, closing(WeightReader(files)) as reader:
        return {name: reader.tensor(f"{name}.weight", dtype) for name in modules}


def _stamp(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns
