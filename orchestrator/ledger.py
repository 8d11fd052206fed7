"""The ledger: every edit that was ever applied or refused, in order, in append-only Parquet parts.

It is what a run is replayed from, so it holds whole requests, and the window of each turn: turns that went through the
frozen layers in one pass must do so again to give the same bits.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from editing import EditRequest, InputError

_REQUEST_FIELDS = [f.name for f in fields(EditRequest)]

SCHEMA = pa.schema(
    [
        ("turn", pa.int64()),
        ("window", pa.int64()),
        ("record", pa.int64()),
        *((name, pa.string()) for name in _REQUEST_FIELDS),
        ("when", pa.timestamp("us", tz="UTC")),
        ("outcome", pa.string()),
    ]
)
_BATCH_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger.

    Attributes:
        turn: Number of the turn, from 1, refused turns counted too.
        window: Number of the lookahead window that the turn was in, from 1.
        record: Number of the edit's record in its input, from 1.
        request: The edit.
        outcome: ``applied``, or ``refused: <reason>``.
        when: When its turn was done.
    """

    turn: int
    window: int
    record: int
    request: EditRequest
    outcome: str
    when: datetime

    @property
    def applied(self) -> bool:
        return self.outcome == "applied"


class Ledger:
    """The parts in one folder. Rows are kept in memory until :meth:`flush` makes a part of them.

    Args:
        folder: Where the parts are; made if missing.
        parts: Names of the parts that count, in order; others are what a killed run left and are ignored. ``None`` takes
            all that are there.
    """

    def __init__(self, folder: Path, parts: Sequence[str] | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.parts = sorted(p.name for p in folder.glob("part-*.parquet")) if parts is None else list(parts)
        self._pending: list[dict[str, Any]] = []

    def add(self, turn: int, window: int, edits: Iterable[tuple[int, EditRequest]], outcome: str) -> None:
        """Append one turn's edits, in the order they were asked for."""
        when = datetime.now(UTC)
        for record, request in edits:
            asked = {name: getattr(request, name) for name in _REQUEST_FIELDS}
            self._pending.append({"turn": turn, "window": window, "record": record, **asked, "when": when, "outcome": outcome})

    def flush(self) -> None:
        """Make a part of what was added since the last one, on the disk for good."""
        if not self._pending:
            return
        name = f"part-{len(self.parts):06d}.parquet"
        with (self.folder / name).open("wb") as file:
            pq.write_table(pa.Table.from_pylist(self._pending, schema=SCHEMA), file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        self.parts.append(name)
        self._pending = []

    def __iter__(self) -> Iterator[Entry]:
        """All flushed entries, at constant memory.

        Raises:
            InputError: A part is missing or damaged.
        """
        for name in self.parts:
            try:
                with pq.ParquetFile(self.folder / name) as file:
                    for batch in file.iter_batches(_BATCH_ROWS):
                        yield from map(_entry, batch.to_pylist())
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"{self.folder / name}: is missing or damaged ({error})") from None

    def windows(self) -> Iterator[list[list[Entry]]]:
        """The entries as windows of turns, as they were run."""
        for _, window in groupby(self, key=lambda e: e.window):
            yield [list(turn) for _, turn in groupby(window, key=lambda e: e.turn)]


def _entry(row: dict[str, Any]) -> Entry:
    request = EditRequest(**{name: row[name] for name in _REQUEST_FIELDS})
    return Entry(row["turn"], row["window"], row["record"], request, row["outcome"], row["when"])
