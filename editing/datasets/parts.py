"""The parts of an input: one file, or the files of a folder; what each of them is tell its first bytes, not its name."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from editing.datasets.arrow import FILE, STREAM, count_arrow_rows, read_arrow_rows, saved_dataset
from editing.datasets.foreign import HEAD_BYTES, refuse_foreign
from editing.datasets.parquet import count_rows, read_rows
from editing.datasets.records import EXPECTED, BadRecord, Records, begins_like_edits, read_text
from editing.errors import InputError

Container = Literal["plain", "gzip", "zstd", "parquet", "arrow"]

_MAGIC: dict[bytes, Container] = {b"PAR1": "parquet", FILE: "arrow", STREAM: "arrow", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}

_BESIDE = frozenset(("README.md", "dataset_info.json", "dataset_infos.json", "state.json"))
"""What lies beside the parts of a data set, and is none."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file of an input.

    Attributes:
        path: The file.
        container: What it is: text, plain or compressed, Parquet or Arrow.
        num_bytes: Its length on the disk, in bytes.
    """

    path: Path
    container: Container
    num_bytes: int

    @classmethod
    def of(cls, path: Path) -> "Part":
        """The part at a path.

        Raises:
            InputError: No plain file is there, it may not be read, or it is of another kind.
        """
        with _named(path):
            found = path.stat()
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError
            if not stat.S_ISREG(found.st_mode):  # a pipe among others: the file is read more than once
                raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
            refuse_foreign(path, head)
        return cls(path, next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "plain"), found.st_size)

    @property
    def is_text(self) -> bool:
        """Whether it is text, plain or compressed."""
        return self.container not in ("parquet", "arrow")

    @property
    def compression(self) -> str | None:
        """That of a text."""
        return self.container if self.container in ("gzip", "zstd") else None

    @property
    def num_records(self) -> int | None:
        """Number of records, if it is known without reading them.

        Raises:
            InputError: A Parquet or Arrow file is damaged.
        """
        with _named(self.path):
            return None if self.is_text else (count_rows if self.container == "parquet" else count_arrow_rows)(self.path)

    def read(self, *, first: int, after: int) -> Records:
        """Records after number ``after``; the part's own begin after number ``first``. Returns the number of the last."""
        with _named(self.path):
            if self.container == "parquet":
                return (yield from read_rows(self.path, first=first, after=after))
            if self.container == "arrow":
                return (yield from read_arrow_rows(self.path, first=first, after=after))
            return (yield from read_text(self.path, self.compression, first=first, after=after))


def find_parts(path: Path) -> tuple[Part, ...]:
    """The file at a path, or the files of the folder there in the order of their names.

    Hidden files, ``_*``, a data card and what ``datasets`` writes beside its files are left out.

    Raises:
        InputError: Nothing is there, it may not be read, or a file of the folder is no part like the others.
    """
    with _named(path):
        if not path.is_dir():
            return (Part.of(path),)
        paths = saved_dataset(path)
        if paths is None:
            paths = sorted(entry for entry in path.iterdir() if not entry.name.startswith((".", "_")) and entry.name not in _BESIDE)
    if not paths:
        raise InputError(f"{path}: is a folder without files; expected a file with edits, or a folder of parts that are {EXPECTED}")
    parts = tuple(map(Part.of, paths))
    for part in parts:
        _check_like(parts[0], part)
    return parts


def read_parts(parts: Sequence[Part], *, after: int = 0) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    """Records with their numbers, from 1 and on over all parts; those up to ``after`` are skipped.

    Raises:
        InputError: A part cannot be read, is empty or damaged, or is a JSON array that is not closed or goes on after its end.
    """
    number = 0
    for part in parts:
        number = yield from part.read(first=number, after=after)


def _check_like(other: Part, part: Part) -> None:
    """Refuse what lies in a folder beside the edits: found only when it is reached, it would stop a long run."""
    advice = "move it elsewhere, or give it a name that begins with _"
    if (part.is_text, other.is_text) != (True, True) and part.container != other.container:
        binary = next(p.container for p in (other, part) if not p.is_text).capitalize()
        kinds = [f"{p.path.name} {'is' if p.container == binary.lower() else 'is not'} {binary}" for p in (other, part)]
        raise InputError(f"{part.path}: expected parts of one kind in a folder, but {' and '.join(kinds)}; {advice}")
    with _named(part.path):
        if part.is_text and not begins_like_edits(part.path, part.compression):
            raise InputError(f"{part.path}: expected a part that is {EXPECTED}; {advice}")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say what the system says of a file as this project does."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a file with edits") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; expected a file with edits") from None
    except PermissionError:
        raise InputError(f"{path}: may not be read by this user") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); expected a plain file with edits") from None
