"""A build on a Ray cluster: the same functions over Ray Data, which spreads the rows and brings them together.

Inputs and the output's folder lie where every node sees them. Rows between stages lie in Ray's object store.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError, RayTaskError

from editing.errors import UltraEditError, WorkerLost
from orchestrator.data.building.rows import Row, to_rows, to_tables
from orchestrator.data.building.sources import Stretch
from orchestrator.data.building.stages import Change, ChangeBucket, Key, Read
from workers.cluster import connect

_BUCKET = "bucket"


class RayStages:
    """Stages over Ray Data.

    Args:
        address: ``local``, ``auto`` or ``ray://HOST:PORT``.
        workers: Cores of a ``local`` cluster.

    Raises:
        InputError: No cluster answers there.
    """

    def __init__(self, address: str, workers: int) -> None:
        self._connected = not ray.is_initialized()
        if self._connected:
            connect(address, workers)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    def read(self, stretches: Sequence[Stretch], function: Read) -> ray.data.Dataset:
        numbers = ray.data.from_items(list(range(len(stretches))), override_num_blocks=max(len(stretches), 1))
        return _done(numbers.map_batches(partial(_read, stretches=stretches, function=function), batch_size=1, batch_format="pyarrow"))

    def regroup(self, tables: Sequence[ray.data.Dataset], key: Key, num_buckets: int, function: ChangeBucket) -> ray.data.Dataset:
        first, *others = tables
        rows = first.union(*others) if others else first
        numbered = rows.map_batches(partial(_number, key=key, num_buckets=num_buckets), batch_format="pyarrow")
        return _done(numbered.groupby(_BUCKET).map_groups(partial(_change, function=function), batch_format="pyarrow"))

    def gather(self, tables: ray.data.Dataset, function: Change) -> Iterator[Row]:
        changed = _done(tables.map_batches(partial(_apply, function=function), batch_format="pyarrow"))
        yield from to_rows(changed.iter_batches(batch_size=None, batch_format="pyarrow"))

    def close(self) -> None:
        if self._connected:
            ray.shutdown()


def _done(dataset: ray.data.Dataset) -> ray.data.Dataset:
    """Compute a stage once; an error of ours comes out as it was raised."""
    try:
        done: ray.data.Dataset = dataset.materialize()
        return done
    except RayTaskError as error:
        if isinstance(error.cause, UltraEditError):
            raise error.cause from None
        raise
    except RayError as error:
        raise WorkerLost(f"ray-address: the cluster lost the build ({' '.join(str(error).split())[:300]}); start it again") from None


def _read(numbers: pa.Table, *, stretches: Sequence[Stretch], function: Read) -> Iterator[pa.Table]:
    for number in numbers.column("item").to_pylist():
        yield from to_tables(function(stretches[number]))


def _apply(table: pa.Table, *, function: Change) -> Iterator[pa.Table]:
    yield from to_tables(function(to_rows([table])))


def _number(table: pa.Table, *, key: Key, num_buckets: int) -> pa.Table:
    buckets = [key(row) % num_buckets for row in to_rows([table])]
    return table.append_column(_BUCKET, pa.array(buckets, pa.int64()))


def _change(table: pa.Table, *, function: Callable[[int, Any], Iterator[Row]]) -> pa.Table:
    """One bucket, with the names of entities in front."""
    bucket = table.column(_BUCKET)[0].as_py()
    named = pa.compute.is_null(table.column("relation"))
    rows = to_rows([table.filter(named), table.filter(pa.compute.invert(named))])
    return pa.concat_tables(to_tables(function(bucket, rows)))
