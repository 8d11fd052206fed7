"""Raw records of a Parquet file, a batch of rows at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from editing.datasets.records import BadRecord, Records, damaged

_BATCH_ROWS = 1000

FAILURES = (OSError, ValueError, OverflowError, pa.ArrowException)
"""What pyarrow raises on bytes that it cannot decode, and on values that Python cannot hold."""


def count_rows(path: Path) -> int:
    """Number of rows, from the file's metadata.

    Raises:
        InputError: The file is damaged.
    """
    try:
        with _open(path) as file:
            return int(file.metadata.num_rows)
    except FAILURES as error:
        raise damaged(path, "Parquet file", 0, error) from None


def read_rows(path: Path, *, first: int, after: int) -> Records:
    """Rows as records; whole row groups up to ``after`` are not touched.

    Args:
        path: The file.
        first: Number of the record before the file's first.
        after: Number of the last record that is not wanted.

    Raises:
        InputError: The file is damaged.
    """
    number = first
    try:
        with _open(path) as file:
            for group in range(file.metadata.num_row_groups):
                num_rows = file.metadata.row_group(group).num_rows
                if number + num_rows <= after:
                    number += num_rows
                    continue
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], use_threads=False):
                    known = min(max(after - number, 0), batch.num_rows)
                    number += known
                    for record in batch_records(batch.slice(known), number):
                        number += 1
                        yield number, record
    except FAILURES as error:
        raise damaged(path, "Parquet file", number, error) from None
    return number


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    # read through a small buffer: by default whole row groups are fetched, and one may hold millions of rows
    with pa.OSFile(str(path)) as source, pq.ParquetFile(source, buffer_size=2**18, pre_buffer=False, page_checksum_verification=True) as file:
        yield file


def batch_records(batch: pa.RecordBatch, first: int) -> list[dict[str, Any] | BadRecord]:
    """Rows of a batch as records; ``first`` is the number of the one before them."""
    try:
        return [_present(row) for row in batch.to_pylist()]
    except FAILURES:  # a value that is not UTF-8, a date beyond Python's: it costs its own record only
        return [_record(batch.slice(row, 1), first + row + 1) for row in range(batch.num_rows)]


def _record(row: pa.RecordBatch, number: int) -> dict[str, Any] | BadRecord:
    try:
        return _present(row.to_pylist()[0])
    except FAILURES as error:
        return BadRecord(number, f"holds a value that cannot be read ({error})")


def _present(row: dict[str, Any]) -> dict[str, Any]:
    """The fields that have a value: every row has every column, and a format is told by the fields that are there."""
    return {name: value for name, value in row.items() if value is not None}
