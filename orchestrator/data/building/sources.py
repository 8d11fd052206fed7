"""Triples and names as they lie on the disk: stretches of files, each read on its own, at constant memory.

Triples are TSV, JSON lines or Parquet. Names are Wikidata5M's alias files: an id and its names, separated by tabs.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from editing.datasets.parts import Container, Part
from editing.datasets.records import damaged
from editing.errors import InputError
from orchestrator.data.building.rows import Row, counted, tidy
from orchestrator.data.building.templates import Templates

_STRETCH_BYTES = 2**22
_MAX_LINE_BYTES = 2**20
_MAX_NAME = 1000
"""Characters of a name; what is longer is no name."""

_PROPERTY, _ITEM = re.compile(r"P\d+"), re.compile(r"[QP]\d+")
_COLUMNS = ("subject", "relation", "object", "object_type")

Fields = Sequence[Any]


@dataclass(frozen=True)
class Stretch:
    """A part of a file.

    Attributes:
        path: The file.
        container: What it is.
        start: The first byte, or of a Parquet file the first row group; lines belong to the stretch in which they begin.
        stop: The byte or row group after the last; ``None`` for the end of the file.
    """

    path: Path
    container: Container
    start: int
    stop: int | None

    def lines(self) -> Iterator[bytes]:
        """Lines of a text, without their ends. One that is far too long is cut."""
        with self._open() as file:
            if self.start:
                file.seek(self.start - 1)
                _skip_line(file)
            while self.stop is None or file.tell() < self.stop:
                line = file.readline(_MAX_LINE_BYTES)
                if not line:
                    return
                if not line.endswith(b"\n"):
                    _skip_line(file)
                yield line.rstrip(b"\r\n")

    @cached_property
    def lines_before(self) -> int:
        """Lines that begin before the stretch; only the name of a bad one needs this."""
        if not self.start:
            return 0
        with self.path.open("rb") as file:
            count, left = 0, self.start
            while chunk := file.read(min(left, 2**20)):
                count, left = count + chunk.count(b"\n"), left - len(chunk)
            file.seek(self.start - 1)
            return count + (file.read(1) != b"\n")

    def _open(self) -> io.BufferedReader:
        if self.container == "plain":
            return self.path.open("rb")
        return io.BufferedReader(pa.input_stream(str(self.path), compression=self.container), 2**16)


def find_files(paths: Sequence[Path]) -> list[Part]:
    """Files, and the files of folders in the order of their names.

    Raises:
        InputError: A file may not be read, or is none.
    """
    files = (sorted(p for p in path.iterdir() if not p.name.startswith((".", "_"))) if path.is_dir() else [path] for path in paths)
    return list(map(Part.of, chain.from_iterable(files)))


def stretches(files: Sequence[Part]) -> list[Stretch]:
    """All stretches of files, in order; a compressed file is one.

    Raises:
        InputError: A Parquet file is damaged, or lacks a column.
    """
    found = []
    for file in files:
        if file.container == "plain":
            stops = [*range(_STRETCH_BYTES, file.num_bytes, _STRETCH_BYTES), None]
            found += [Stretch(file.path, "plain", start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]
        elif file.container == "parquet":
            found += [Stretch(file.path, "parquet", group, group + 1) for group in range(_num_row_groups(file.path))]
        else:
            found.append(Stretch(file.path, file.container, 0, None))
    return found


def read_triples(stretch: Stretch, templates: Templates, *, named: bool, strict: bool) -> Iterator[Row]:
    """Triples of which there are templates.

    Args:
        stretch: Where.
        templates: Of the relations that are wanted.
        named: Names of entities come from elsewhere; else what looks like an id is not accepted as one.
        strict: Raise at the first triple that cannot be used.

    Raises:
        InputError: A file is damaged, or a triple cannot be used and ``strict`` is set.
    """
    for number, fields in _numbered(stretch, _fields):
        reason, example = _why_not(fields, templates, named=named)
        if reason is None:
            subject, relation, object_, kind = (tidy(value) if value else None for value in (*fields, None)[:4])
            assert subject
            assert relation
            yield Row(subject, templates.find(relation), object_, kind)
        elif strict:
            raise InputError(f"{stretch.path}: {_place(stretch, number)}: {example}")
        else:
            relation = fields[1] if reason in ("no template", "one template") else None
            yield counted(reason, relation, f"{stretch.path.name}: {_place(stretch, number)}: {example}")
        yield counted("triple")


def read_names(stretch: Stretch, *, strict: bool) -> Iterator[Row]:
    """Entities with their names.

    Raises:
        InputError: A file is damaged, or a line is not usable and ``strict`` is set.
    """
    for number, fields in _numbered(stretch, _tabbed):
        wrong = "is not valid UTF-8" if not fields else "expected an id and a name at least, separated by tabs" if len(fields) < 2 else None
        names = [] if wrong else [name for name in map(tidy, fields[1:]) if 0 < len(name) <= _MAX_NAME]
        if names:
            yield Row(tidy(fields[0]), names=names)
            continue
        wrong = wrong or "expected a name, found none"
        if strict:
            raise InputError(f"{stretch.path}: {_place(stretch, number)}: {wrong}")
        yield counted("malformed alias line", example=f"{stretch.path.name}: {_place(stretch, number)}: {wrong}")


def names_relations(file: Part) -> bool:
    """Whether an alias file names relations: the first id is a property's."""
    first: Fields | None = next(_guarded(Stretch(file.path, file.container, 0, None), _tabbed), None)
    return first is not None and len(first) > 0 and _PROPERTY.fullmatch(first[0]) is not None


def _numbered(stretch: Stretch, parse: Any) -> Iterator[tuple[int, Fields]]:
    """Numbers and fields; blank lines and a head line count, and are left out."""
    for number, fields in enumerate(_guarded(stretch, parse), start=1):
        if fields not in (("",), _COLUMNS, _COLUMNS[:3]):
            yield number, fields


def _guarded(stretch: Stretch, parse: Any) -> Iterator[Fields]:
    try:
        yield from parse(stretch)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise damaged(stretch.path, f"{stretch.container} file", 0, error) from None


def _place(stretch: Stretch, number: int) -> str:
    if stretch.container == "parquet":
        return f"row {number} of row group {stretch.start + 1}"
    return f"line {stretch.lines_before + number}"


def _fields(stretch: Stretch) -> Iterator[Fields]:
    """Fields of each triple; of what is not one, as many as were found."""
    if stretch.container == "parquet":
        with pq.ParquetFile(stretch.path) as file:
            columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
            for batch in file.iter_batches(2**14, row_groups=[stretch.start], columns=columns, use_threads=False):
                yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    else:
        yield from (_json_fields(stretch.path, line) if line.startswith(b"{") else _cut(line) for line in stretch.lines())


def _tabbed(stretch: Stretch) -> Iterator[Fields]:
    return map(_cut, stretch.lines())


def _cut(line: bytes) -> Fields:
    try:
        return tuple(line.decode("utf-8").split("\t"))
    except UnicodeDecodeError:
        return ()


def _json_fields(path: Path, line: bytes) -> Fields:
    """Fields of an object with our names, or with ParaRel's, whose files are named after their relation."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(record, Mapping):
        return ()
    if "sub_label" in record:
        return record["sub_label"], record.get("predicate_id", path.name.partition(".")[0]), record.get("obj_label")
    return tuple(record[name] for name in _COLUMNS if name in record)


def _why_not(fields: Fields, templates: Templates, *, named: bool) -> tuple[str | None, str]:
    """The reason why a triple cannot be used, for the counts and in words."""
    if len(fields) not in (3, 4):
        return "malformed", f"expected subject, relation and object (separated by tabs, or as fields of these names), found {len(fields)} of them"
    for name, value in zip(_COLUMNS, fields, strict=False):
        if (wrong := _wrong_name(value, required=name != "object_type")) is not None:
            return "malformed", f"{name}: {wrong}"
    subject, relation, object_ = map(tidy, fields[:3])
    if (found := templates.find(relation)) is None:
        return "no template", f"relation {relation!r} has no template"
    if len(templates.texts[found]) < 2:
        return "one template", f"relation {relation!r} has fewer than two templates; the equivalent prompt needs another one"
    if not named and (id := next((n for n in (subject, object_) if _ITEM.fullmatch(n)), None)):
        return "no name", f"{id} is an id; give --aliases with the names of entities"
    return None, ""


def _wrong_name(value: object, *, required: bool) -> str | None:
    if value is None and not required:
        return None
    if not isinstance(value, str):
        return f"expected a name, found {type(value).__name__}"
    if required and not value.strip():
        return "expected a name, found an empty one"
    if len(value) > _MAX_NAME:
        return f"expected a name, found {len(value)} characters"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "contains a lone surrogate, which is not valid Unicode text"
    return None


def _num_row_groups(path: Path) -> int:
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in _COLUMNS[:3] if name not in file.schema_arrow.names]:
                raise InputError(f"{path}: lacks the column {missing[0]!r}; expected subject, relation and object")
            return int(file.num_row_groups)
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, "Parquet file", 0, error) from None


def _skip_line(file: io.BufferedReader) -> None:
    while (rest := file.readline(_MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
        pass
