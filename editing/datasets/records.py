"""Raw records of a text, one at a time: a JSON array, JSON lines or a table, whichever its beginning tells.

An array is cut into elements by its brackets, commas and quotes alone, and each element is parsed like a line, on its
own: what is wrong with one costs that record and no other. Only an array that is never closed is an error of the file.
"""

import io
import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from editing.datasets.tables import read_table, table_header
from editing.errors import InputError

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|["\[\]{},]', re.DOTALL)
"""A whole string, or one character of an array's structure; a quote alone begins a string that is cut off."""

_CHUNK_BYTES = 2**18

_STREAM_BYTES = 2**16

_MAX_RECORD_BYTES = 2**24
"""Far above any edit: after a lost quote, all the rest of an array looks like one element."""

EXPECTED = "JSON lines, a JSON array, CSV, Parquet or Arrow"


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


Records = Generator[tuple[int, dict[str, Any] | BadRecord], None, int]
"""Records with their numbers; returns the number of the last."""


def read_text(path: Path, compression: str | None, *, first: int, after: int) -> Records:
    """Records of a text, plain or compressed; those up to ``after`` are passed over without a look at what they say.

    Args:
        path: The file.
        compression: ``gzip``, ``zstd`` or ``None``.
        first: Number of the record before the text's first.
        after: Number of the last record that is not wanted.

    Raises:
        InputError: The text is empty, or breaks off: a compressed stream, or a JSON array that is not closed or goes on after its end.
    """
    number = first
    try:
        with _open(path, compression) as file:
            start = _first_character(file)
            if not start:
                raise InputError(f"{path}: is empty; expected edits as {EXPECTED}")
            table = _table(file, start)
            if table is not None:
                for number, row in enumerate(read_table(path, file, *table), start=first + 1):
                    if number > after:
                        yield number, BadRecord(number, row) if isinstance(row, str) else row
                return number
            texts = _elements(path, file, first) if start == b"[" else _lines(path, file, first)
            for number, text in enumerate(texts, start=first + 1):
                if number > after:
                    yield number, _parse(number, text)
    except OSError as error:
        raise damaged(path, f"{compression} stream", number, error) from None
    return number


def begins_like_edits(path: Path, compression: str | None) -> bool:
    """Whether the beginning is that of a JSON object or array, or of a table with a header."""
    try:
        with _open(path, compression) as file:
            start = _first_character(file)
            return start in (b"{", b"[") or _table(file, start) is not None
    except OSError as error:
        raise damaged(path, f"{compression} stream", 0, error) from None


def damaged(path: Path, what: str, number: int, error: Exception) -> Exception:
    """The error of a file whose content cannot be decoded after a record; errors of the system stay what they are."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    reason = (str(error).splitlines() or ["unknown"])[0].rstrip(". ")
    where = f" after record {number}" if number else ""
    return InputError(f"{path}: the {what} is damaged or cut off{where} ({reason}); write or copy the file again")


def _open(path: Path, compression: str | None) -> io.BufferedReader:
    """The text's bytes; a stream that breaks off raises an OSError that has no ``errno``."""
    if compression is None:
        return path.open("rb")
    return io.BufferedReader(pa.input_stream(str(path), compression=compression), _STREAM_BYTES)


def _first_character(file: io.BufferedReader) -> bytes:
    """The first character that is not blank; whole buffers of blanks, and a byte-order mark, are passed over."""
    if file.peek(3).startswith(b"\xef\xbb\xbf"):  # which some editors write
        file.read(3)
    while (ahead := file.peek()) and not ahead.strip():
        file.read(len(ahead))
    return ahead.strip()[:1]


def _table(file: io.BufferedReader, start: bytes) -> tuple[list[str], str] | None:
    return None if start in (b"{", b"[") else table_header(file.peek())


def _lines(path: Path, file: BinaryIO, first: int) -> Iterator[bytes]:
    number = first
    while line := file.readline(_MAX_RECORD_BYTES):
        if not line.strip():
            continue
        number += 1
        if len(line) == _MAX_RECORD_BYTES:
            raise _too_long(path, number, "a line end")
        yield line


def _elements(path: Path, file: BinaryIO, first: int) -> Iterator[bytes]:
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
        if len(buffer) - start > _MAX_RECORD_BYTES:
            raise _too_long(path, first + count + 1, "a quote or bracket that closes it")
    raise InputError(f"{path}: record {first + count + 1}: the JSON array breaks off; expected ] at the end of the file")


def _too_long(path: Path, number: int, expected: str) -> InputError:
    return InputError(f"{path}: record {number}: is over {_MAX_RECORD_BYTES >> 20} MiB long; expected {expected}")


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
