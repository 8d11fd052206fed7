"""Raw records of an edit file, one at a time: a JSON array or JSON lines, whichever the file's first character tells.

An array is cut into elements by its brackets, commas and quotes alone, and each element is parsed like a line, on its
own: what is wrong with one costs that record and no other. Only an array that is never closed is an error of the file.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from editing.errors import InputError

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|["\[\]{},]', re.DOTALL)
"""A whole string, or one character of an array's structure; a quote alone begins a string that is cut off."""

_CHUNK_BYTES = 2**18

_MAX_ELEMENT_BYTES = 2**24
"""Far above any edit: after a lost quote, all the rest of an array looks like one element."""


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
        InputError: The file cannot be read, is empty, or is a JSON array that is not closed or goes on after its end.
    """
    try:
        with path.open("rb") as file:
            first = _first_character(file)
            if not first:
                raise InputError(f"{path}: is empty; expected edits as JSON lines or a JSON array")
            for number, text in enumerate(_elements(path, file) if first == b"[" else _lines(file), start=1):
                yield number, _parse(number, text)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a file with edits") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; expected a file with edits") from None
    except PermissionError:
        raise InputError(f"{path}: may not be read by this user") from None
    except OSError as error:  # a pipe among others: the file is read more than once
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); expected a plain file with edits") from None


def _first_character(file: BinaryIO) -> bytes:
    if file.read(3) != b"\xef\xbb\xbf":  # a byte-order mark, which some editors write
        file.seek(0)
    start = file.tell()
    while (character := file.read(1)).isspace():
        pass
    file.seek(start)
    return character


def _lines(file: BinaryIO) -> Iterator[bytes]:
    return (line for line in file if line.strip())


def _elements(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """The text of each element of the file's array."""
    buffer, at, start, depth, count = b"", 0, 0, 0, 0
    while chunk := file.read(_CHUNK_BYTES):
        buffer, at, start = buffer[start:] + chunk, at - start, 0
        for token in _TOKEN.finditer(buffer, at):
            mark, at = token[0], token.end()
            if mark == b'"':
                at = token.start()  # read on and look at it again
                break
            depth += (mark in b"[{") - (mark in b"]}")
            if depth > 1 or (depth == 1 and mark not in b"[,"):
                continue
            text, start = buffer[start : token.start()], at
            if mark == b"," or (depth == 0 and (count or text.strip())):
                count += 1
                yield text
            if depth == 0:
                _expect_end(path, file, buffer[at:] if mark == b"]" else mark, count)
                return
        if len(buffer) - start > _MAX_ELEMENT_BYTES:
            raise InputError(f"{path}: record {count + 1}: is over {_MAX_ELEMENT_BYTES >> 20} MiB long; expected a quote or bracket that closes it")
    raise InputError(f"{path}: record {count + 1}: the JSON array breaks off; expected ] at the end of the file")


def _expect_end(path: Path, file: BinaryIO, rest: bytes, count: int) -> None:
    while not rest.strip() and (more := file.read(_CHUNK_BYTES)):
        rest = more
    if rest.strip():
        found = rest.strip()[:20].decode("utf-8", "replace")
        raise InputError(f"{path}: expected the end of the file after the JSON array's {count} records, found {found!r}")


def _parse(number: int, text: bytes) -> dict[str, Any] | BadRecord:
    try:
        value = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        reason = f"is not valid UTF-8 (its byte {error.start + 1} is 0x{text[error.start]:02x})"
    except json.JSONDecodeError as error:
        reason = f"is not JSON ({error.msg.removesuffix(' at')}, character {error.pos + 1})"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        reason = f"cannot be read as JSON ({error})"
    else:
        return value if isinstance(value, dict) else BadRecord(number, f"expected a JSON object, found {type(value).__name__}", value)
    return BadRecord(number, reason, text[:200].decode("utf-8", "replace").strip())
