"""Raw records of an edit file, one at a time: a JSON array or JSON lines, whichever the file's first character tells.

A line that is not JSON is one bad record. A JSON array that breaks off cannot be read past that point, so it is an error.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from editing.errors import InputError


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that could not be used.

    Attributes:
        number: Its number in the file, from 1.
        reason: What was expected and what was found.
        raw: The record, or as much of its text as helps to find it.
    """

    number: int
    reason: str
    raw: Any = None


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    """Records with their numbers, from 1.

    Raises:
        InputError: The file is missing, is empty, or is a JSON array that cannot be read on.
    """
    try:
        with path.open("rb") as file:
            first = _first_character(file)
            if not first:
                raise InputError(f"{path}: is empty; expected edits as JSON lines or a JSON array")
            for number, value in enumerate(_array(path, file) if first == b"[" else _lines(file), start=1):
                if isinstance(value, dict | BadRecord):
                    yield number, value
                else:
                    yield number, BadRecord(number, f"expected a JSON object, found {type(value).__name__}", value)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a file with edits") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; expected a file with edits") from None
    except PermissionError:
        raise InputError(f"{path}: may not be read by this user") from None


def _first_character(file: BinaryIO) -> bytes:
    if file.read(3) != b"\xef\xbb\xbf":  # a byte-order mark, which some editors write
        file.seek(0)
    start = file.tell()
    while (character := file.read(1)).isspace():
        pass
    file.seek(start)
    return character


def _lines(file: BinaryIO) -> Iterator[Any]:
    number = 0
    for line in file:
        if not line.strip():
            continue
        number += 1
        try:
            yield json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield BadRecord(number, f"is not valid UTF-8 (byte {error.start} of its line)", line[:200].decode("utf-8", "replace"))
        except ValueError as error:
            yield BadRecord(number, f"is not JSON ({error})", line[:200].decode("utf-8", "replace").rstrip("\n"))


def _array(path: Path, file: BinaryIO) -> Iterator[Any]:
    number = 0
    try:
        for number, value in enumerate(ijson.items(file, "item"), start=1):
            yield _plain(value)
    except (ijson.JSONError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path}: record {number + 1}: the JSON array cannot be read on ({str(error).splitlines()[0]})") from None


def _plain(value: Any) -> Any:
    """Numbers as floats: ijson gives decimals, which nothing else here knows."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value
