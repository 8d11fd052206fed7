"""Raw records of an Arrow file or stream, as ``datasets`` writes them, a batch of rows at a time; ``datasets`` itself is not needed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from editing.datasets.parquet import FAILURES, batch_records
from editing.datasets.records import Records, damaged
from editing.errors import InputError

FILE, STREAM = b"ARROW1", b"\xff\xff\xff\xff"
"""How a file and a stream of Arrow begin."""

_ROWS = 1000


def count_arrow_rows(path: Path) -> int:
    """Number of rows. Of their values none is read.

    Raises:
        InputError: The file is damaged.
    """
    try:
        with _batches(path) as batches:
            return sum(batch.num_rows for batch in batches)
    except FAILURES as error:
        raise damaged(path, "Arrow file", 0, error) from None


def read_arrow_rows(path: Path, *, first: int, after: int) -> Records:
    """Rows as records, as :func:`editing.datasets.parquet.read_rows`.

    Raises:
        InputError: The file is damaged.
    """
    number = first
    try:
        with _batches(path) as batches:
            for batch in batches:
                skipped = min(max(after - number, 0), batch.num_rows)
                number += skipped
                for start in range(skipped, batch.num_rows, _ROWS):
                    for record in batch_records(batch.slice(start, _ROWS), number):
                        number += 1
                        yield number, record
    except FAILURES as error:
        raise damaged(path, "Arrow file", number, error) from None
    return number


@contextmanager
def _batches(path: Path) -> Iterator[Iterator[pa.RecordBatch]]:
    with pa.memory_map(str(path)) as source:  # a batch is not copied, and rows that are not wanted are not even read
        stream = path.open("rb").read(len(STREAM)) == STREAM
        yield iter(pa.ipc.open_stream(source)) if stream else _of_file(pa.ipc.open_file(source))


def _of_file(reader: Any) -> Iterator[pa.RecordBatch]:
    return (reader.get_batch(i) for i in range(reader.num_record_batches))


def saved_dataset(folder: Path) -> list[Path] | None:
    """The Arrow files of a folder that ``datasets`` saved, in their order; ``None`` if it is no such folder.

    Raises:
        InputError: It holds several splits, or rows picked from its files by an index.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits")
        listed = ", ".join(map(str, splits)) if isinstance(splits, list) else "its folders"
        raise InputError(f"{folder}: is a data set of several splits ({listed}); give the folder of one of them")
    if not (folder / "state.json").is_file() or not any(folder.glob("*.arrow")):
        return None
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise InputError(f"{folder}: its rows are picked by an index; save it again after flatten_indices()")
    files = state.get("_data_files")
    names = [one.get("filename") for one in files if isinstance(one, dict)] if isinstance(files, list) else []
    return [folder / str(Path(str(name)).name) for name in names] or sorted(folder.glob("*.arrow"))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({error}); save the data set again") from None
    return found if isinstance(found, dict) else {}
