"""What a build is made of, whatever carries it out: functions from rows to rows, and rows brought together by a key."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from orchestrator.data.building.rows import Row
from orchestrator.data.building.sources import Stretch

Tables = TypeVar("Tables")
"""Rows that lie somewhere: files on this machine's disk, blocks in a cluster's memory."""

Read = Callable[[Stretch], Iterator[Row]]
Change = Callable[[Iterable[Row]], Iterator[Row]]
ChangeBucket = Callable[[int, Iterable[Row]], Iterator[Row]]
Key = Callable[[Row], int]


class Stages(Protocol[Tables]):
    """Carries out the stages of a build. No result depends on how many processes do it, nor on their order.

    Functions are sent to other processes: they are functions of a module, or partial ones.
    """

    def read(self, stretches: Sequence[Stretch], function: Read) -> Tables:
        """The rows of files."""

    def regroup(self, tables: Sequence[Tables], key: Key, num_buckets: int, function: ChangeBucket) -> Tables:
        """Bring rows of one key together and change them, a bucket of keys at a time; entities' names come before triples."""

    def gather(self, tables: Tables, function: Change) -> Iterator[Row]:
        """Change rows, some at a time, and bring what remains to this process."""

    def close(self) -> None:
        """End every process that was started."""
