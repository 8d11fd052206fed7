"""The ledger: every edit that was ever applied or refused, in order, in append-only Parquet files.

Runs are replayed from it, so it holds whole requests, and the window of each turn: checkpoints are written after whole windows.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from editing import EditRequest, InputError
from editing.datasets.writing import REQUEST_COLUMNS, request_row
from editing.files.format_version import Format

if TYPE_CHECKING:  # ``show`` and ``history`` read a ledger without torch
    from editing.turn import Turn

FORMAT = Format("ledger", 2)
"""A part's rows. What an edit could not say in an earlier version has no column there. Version 2 has chats, which cannot be taken for prompts."""

_REQUEST_FIELDS = [f.name for f in fields(EditRequest)]

SCHEMA = pa.schema(
    [
        ("source", pa.int64()),
        ("window", pa.int64()),
        ("turn", pa.int64()),
        ("record", pa.int64()),
        *REQUEST_COLUMNS,
        ("when", pa.timestamp("us", tz="UTC")),
        ("outcome", pa.string()),
    ],
    metadata=FORMAT.parquet_tag,
)
_BATCH_ROWS = 1000
_EPOCH = datetime.fromtimestamp(0, UTC)

APPLIED = "applied"
"""Outcome of an edit whose turn was applied; any other says why not."""

ROLLED_BACK = "rolled back"
"""Outcome of an edit whose turn was undone."""


SUPERSEDED = "superseded in the same turn"
"""Outcome of an edit that a later one of its turn overruled before it was applied."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger.

    Attributes:
        source: Number of the input that the edit came from, from 1.
        window: Number of the lookahead window that its turn was in, from 1.
        turn: Number of its turn, from 1, refused turns counted too.
        record: Number of the edit's record in its input, from 1.
        request: The edit.
        outcome: :data:`APPLIED`, or why not.
        when: When its turn was done.
    """

    source: int
    window: int
    turn: int
    record: int
    request: EditRequest
    outcome: str
    when: datetime

    @property
    def applied(self) -> bool:
        return self.outcome == APPLIED

    @property
    def rolled_back(self) -> bool:
        return self.outcome == ROLLED_BACK

    @property
    def place(self) -> str:
        """Its record's number, after its input's where that is not the first."""
        return str(self.record) if self.source == 1 else f"{self.source}.{self.record}"

    @property
    def id(self) -> str:
        """The edit's own id, or its place. Two edits may have one id, but never one place."""
        return self.request.id or self.place


class Ledger:
    """The parts in one folder. Rows are kept in memory until :meth:`flush` makes a part of them.

    Args:
        folder: Where the parts are; made if missing.
        num_parts: Parts that belong to the run; later ones were left by a killed run and are deleted. ``None`` takes all.
    """

    def __init__(self, folder: Path, num_parts: int | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(p.name for p in folder.glob("part-*.parquet"))
        self.num_parts = len(names) if num_parts is None else num_parts
        for name in names[self.num_parts :]:
            (folder / name).unlink()
        self._pending: list[dict[str, Any]] = []

    @classmethod
    def first_parts(cls, folder: Path, num_parts: int) -> "Ledger":
        """The first parts of a ledger that goes on after them, to be read only."""
        ledger = cls(folder)
        ledger.num_parts = min(num_parts, ledger.num_parts)
        return ledger

    def add_turn(self, turn: "Turn", *, source: int, window: int, turn_number: int, outcome: str) -> None:
        """Append one turn's edits in the order of their records, superseded ones included."""
        place = {"source": source, "window": window, "turn": turn_number, "when": datetime.now(UTC)}
        own = {id(edit): outcome for edit in turn.edits} | {id(edit): SUPERSEDED for edit in turn.superseded}
        for edit in sorted((*turn.in_request_order, *turn.superseded), key=lambda e: e.record):
            self._pending.append({**place, "record": edit.record, **request_row(edit.request), "outcome": own[id(edit)]})

    def keep_rolled_back(self, entries: Iterable[Entry], *, window: int | None = None) -> None:
        """Append entries of an earlier ledger as rolled back, in their own window or in another."""
        for entry in entries:
            place = {name: getattr(entry, name) for name in ("source", "window", "turn", "record", "when")}
            self._pending.append({**place, **request_row(entry.request), "window": window or entry.window, "outcome": ROLLED_BACK})

    def flush(self) -> None:
        """Write what was added since the last part as a new one, and fsync it."""
        if not self._pending:
            return
        name = _part(self.num_parts)
        with (self.folder / name).open("wb") as file:
            pq.write_table(pa.Table.from_pylist(self._pending, schema=SCHEMA), file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        self.num_parts += 1
        self._pending = []

    def __iter__(self) -> Iterator[Entry]:
        """All flushed entries, at constant memory.

        Raises:
            InputError: A part is missing, damaged or of a newer format version.
        """
        for name in map(_part, range(self.num_parts)):
            try:
                with pq.ParquetFile(self.folder / name) as file:
                    FORMAT.version_of_parquet(file.metadata.metadata, self.folder / name)
                    for batch in file.iter_batches(_BATCH_ROWS):
                        yield from map(_entry, _plain(batch).to_pylist())
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"{self.folder / name}: is missing or damaged ({error})") from None

    def windows(self) -> Iterator[list[list[Entry]]]:
        """The entries as windows of turns, as they were run; turns of a window that were rolled back come last."""
        for _, window in groupby(self, key=lambda e: e.window):
            yield [list(turn) for _, turn in groupby(window, key=lambda e: e.turn)]


def _part(number: int) -> str:
    return f"part-{number:06d}.parquet"


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """With times as integers: for times with a zone pyarrow imports modules, and a Ctrl-C during that is lost."""
    place = batch.schema.get_field_index("when")
    return batch.set_column(place, "when", batch.column(place).cast(pa.int64()))


def _entry(row: dict[str, Any]) -> Entry:
    # a part that an earlier version wrote has no columns for what requests could not say then
    request: dict[str, Any] = {name: row.get(name) for name in _REQUEST_FIELDS}
    return Entry(
        row["source"], row["window"], row["turn"], row["record"], EditRequest(**request), row["outcome"], _EPOCH + timedelta(microseconds=row["when"])
    )
