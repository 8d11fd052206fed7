"""A build on one machine: rows lie in files, each stage is done file by file, by as many processes as are given.

    files --read--> chunks --spill--> one run a chunk, its rows sorted by bucket --regroup--> one chunk a bucket

Memory holds one batch of rows, or one bucket, a process: it does not grow with the input.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from editing.errors import InputError
from orchestrator.data.building.rows import SCHEMA, Row, to_rows, to_tables
from orchestrator.data.building.sources import Stretch
from orchestrator.data.building.stages import Change, ChangeBucket, Key, Read

Result = TypeVar("Result")

Run = tuple[Path, Sequence[int]]
"""A file whose batches belong to one bucket each, and those buckets."""


class LocalStages:
    """Stages on this machine.

    Args:
        folder: Where files go while the build lasts; it is there, and empty.
        workers: Processes; with one, all is done in this one.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self._folder, self._workers = folder, workers
        self._numbers = count()
        self._pool: Executor | None = None

    def read(self, stretches: Sequence[Stretch], function: Read) -> list[Path]:
        return list(self._each(partial(_read, function=function), stretches))

    def regroup(self, tables: Sequence[list[Path]], key: Key, num_buckets: int, function: ChangeBucket) -> list[Path]:
        chunks = list(chain.from_iterable(tables))
        runs = list(self._each(partial(_spill, key=key, num_buckets=num_buckets), chunks))
        changed = list(self._each(partial(_change, runs=runs, function=function), range(num_buckets)))
        for path, _ in runs:
            path.unlink()
        return changed

    def gather(self, tables: list[Path], function: Change) -> Iterator[Row]:
        for path in self._each(partial(_gather, function=function), tables):
            yield from to_rows(_batches(path))
            path.unlink()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _each(self, function: Callable[[Path, Any], Result], tasks: Iterable[Any]) -> Iterator[Result]:
        """Results in the order of the tasks; each has a file of its own to write to."""
        named = [(self._folder / f"{next(self._numbers):06d}.arrow", task) for task in tasks]
        if self._workers == 1 or len(named) < 2:
            yield from (function(*task) for task in named)
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._workers, multiprocessing.get_context("spawn"), _leave_interrupts_to_the_parent)
        futures: list[Future[Result]] = [self._pool.submit(function, *task) for task in named]
        try:
            yield from (future.result() for future in futures)
        except BrokenProcessPool:
            raise InputError("workers: a process of the build died, perhaps for want of memory; give a smaller --workers") from None


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read(target: Path, stretch: Stretch, *, function: Read) -> Path:
    return _write(target, function(stretch))


def _gather(target: Path, source: Path, *, function: Change) -> Path:
    return _write(target, function(to_rows(_batches(source))))


def _change(target: Path, bucket: int, *, runs: Sequence[Run], function: ChangeBucket) -> Path:
    found = chain.from_iterable(_batches(path, [i for i, b in enumerate(buckets) if b == bucket]) for path, buckets in runs)
    return _write(target, function(bucket, to_rows(found)))


def _spill(target: Path, source: Path, *, key: Key, num_buckets: int) -> Run:
    """Sort each batch of a file by bucket; within a bucket, rows keep their order."""
    found: list[int] = []
    with _writer(target) as writer:
        for batch in _batches(source):
            buckets = np.fromiter((key(row) % num_buckets for row in to_rows([batch])), np.int64, batch.num_rows)
            order = np.argsort(buckets, kind="stable")
            ordered = batch.take(pa.array(order))
            present, starts = np.unique(buckets[order], return_index=True)
            for bucket, start, stop in zip(present, starts, [*starts[1:], batch.num_rows], strict=True):
                writer.write_batch(ordered.slice(start, stop - start))
                found.append(int(bucket))
    return target, found


def _write(target: Path, rows: Iterable[Row]) -> Path:
    with _writer(target) as writer:
        for table in to_tables(rows):
            writer.write_table(table)
    return target


def _writer(target: Path) -> pa.ipc.RecordBatchFileWriter:
    return pa.ipc.new_file(str(target), SCHEMA, options=pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False))


def _batches(source: Path, wanted: Iterable[int] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches of a file, read when they are due."""
    with pa.OSFile(str(source)) as file, pa.ipc.open_file(file) as reader:
        yield from map(reader.get_batch, range(reader.num_record_batches) if wanted is None else wanted)
