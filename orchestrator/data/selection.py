"""Edit files out of an edit file: converted, sampled or split. The same seed gives the same records, at constant memory.

Outputs are in the common schema: Parquet, or JSON lines where the name ends in ``.jsonl``. They are written aside and renamed
in the end, so that they are there whole or not at all.
"""

import hashlib
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from editing import EditRequest, InputError
from editing.datasets import BadRecord, EditFile
from editing.datasets.writing import RequestWriter
from orchestrator.findings import refuse_unread
from orchestrator.jsonl import LineFile
from orchestrator.rejected import RejectedRecords

logger = logging.getLogger("ultraedit")

_SHOWN = 20
"""Bad records that are told one by one."""

Choice = Callable[[Iterable[EditRequest]], Iterator[tuple[int, EditRequest]]]
"""Which output each request goes to; those that it leaves out go to none. It may go through the requests more than once."""


def everything(requests: Iterable[EditRequest]) -> Iterator[tuple[int, EditRequest]]:
    """All requests to one output."""
    return ((0, request) for request in requests)


def sampled(count: int, seed: int) -> Choice:
    """A uniform sample in the file's order, in two passes: Knuth's selection sampling (TAOCP 2, 3.4.2, algorithm S)."""

    def choose(requests: Iterable[EditRequest]) -> Iterator[tuple[int, EditRequest]]:
        total, draws, chosen = sum(1 for _ in requests), random.Random(seed), 0
        if count > total:
            raise InputError(f"n: expected at most {total}, the number of usable edits, found {count}")
        for seen, request in enumerate(requests):
            if (total - seen) * draws.random() < count - chosen:
                chosen += 1
                yield 0, request

    return choose


def dealt(fractions: Sequence[float], seed: int) -> Choice:
    """Requests by a hash of seed and prompt: all of one prompt go to one output; the fractions are met on average.

    Raises:
        InputError: The fractions are not positive numbers that add up to 1.
    """
    if len(fractions) < 2 or any(not 0 < fraction < 1 for fraction in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(f"fractions: expected two or more between 0 and 1 that add up to 1, found {', '.join(map(str, fractions))}")
    bounds = list(accumulate(fractions))[:-1]

    def choose(requests: Iterable[EditRequest]) -> Iterator[tuple[int, EditRequest]]:
        return ((sum(_point(request.question, seed) >= bound for bound in bounds), request) for request in requests)

    return choose


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a file's records.

    Attributes:
        counts: Requests in each output.
        num_rejected: Bad records.
        rejected: Where these are, with their reasons.
    """

    counts: list[int]
    num_rejected: int
    rejected: Path


def write(
    source: EditFile,
    outputs: Sequence[Path],
    choose: Choice,
    *,
    strict: bool = False,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Written:
    """Write a choice of a file's requests.

    Args:
        source: The file.
        outputs: Files to write.
        choose: Deals the requests out to them.
        strict: Stop at the first bad record instead of setting it aside, and at the first field that nobody reads.
        overwrite: Replace what is there.
        advance: Called with 1 after each record that is read.

    Raises:
        InputError: The file cannot be read or holds no usable edit, or an output may not be written. Nothing is written then.
    """
    rejected = outputs[0].with_name(f"{outputs[0].stem}.rejected.jsonl")
    with _staged([*outputs, rejected], overwrite=overwrite) as (*paths, aside), ExitStack() as stack:
        usable = stack.enter_context(_Usable(source, aside, strict=strict, advance=advance))
        writers = [stack.enter_context(RequestWriter(path)) for path in paths]
        for output, request in choose(usable):
            writers[output].write(request)
        counts = [writer.count for writer in writers]
        if not sum(counts):
            why = f"; record {usable.first_bad.number}: {usable.first_bad.reason}" if usable.first_bad else ""
            raise InputError(f"{source.path}: holds no usable edit{why}")
    return Written(counts, usable.num_bad, rejected)


class _Usable:
    """The usable requests of a file, any number of times; its bad records are set aside once. The file for them is made by the first."""

    def __init__(self, source: EditFile, aside: Path, *, strict: bool, advance: Callable[[int], None]) -> None:
        self._source, self._aside, self._strict, self._advance = source, aside, strict, advance
        self._file: LineFile | None = None
        self._newest = 0
        self.num_bad = 0
        self.first_bad: BadRecord | None = None

    def __enter__(self) -> "_Usable":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self.num_bad > _SHOWN:
            logger.warning("and %d more", self.num_bad - _SHOWN)

    def __iter__(self) -> Iterator[EditRequest]:
        for record in self._source:
            self._advance(1)
            if not isinstance(record, BadRecord):
                if self._strict:
                    refuse_unread(self._source, record)
                yield record.request
            elif self._strict:
                raise InputError(f"{self._source.path}: record {record.number}: {record.reason}")
            elif record.number > self._newest:  # an earlier pass has set the others aside
                self._set_aside(record)

    def _set_aside(self, bad: BadRecord) -> None:
        self._file = self._file or LineFile(self._aside, 0)
        RejectedRecords(self._file).add_record(bad)
        self._newest, self.num_bad, self.first_bad = bad.number, self.num_bad + 1, self.first_bad or bad
        if self.num_bad <= _SHOWN:
            logger.warning("record %d set aside: %s", bad.number, bad.reason)


@contextmanager
def _staged(outputs: Sequence[Path], *, overwrite: bool) -> Iterator[list[Path]]:
    """Names beside the outputs to write to; what is there in the end takes the outputs' place, after an error nothing does."""
    for output in outputs:
        if output.is_dir() or (output.exists() and not overwrite):
            raise InputError(f"output: {output} is there already; give another name{'' if output.is_dir() else ', or --overwrite'}")
        if not output.parent.is_dir():
            raise InputError(f"output: there is no folder {output.parent}; make it, or give another name")
    aside = [output.with_name(f".partial-{os.getpid()}-{output.name}") for output in outputs]
    try:
        yield aside
        for path, output in zip(aside, outputs, strict=True):
            output.unlink(missing_ok=True) if not path.exists() else path.replace(output)
    finally:
        for path in aside:
            with suppress(FileNotFoundError):
                path.unlink()


def _point(prompt: str, seed: int) -> float:
    """Where in [0, 1) a prompt falls."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{prompt}".encode(), digest_size=6).digest()) / 2**48
