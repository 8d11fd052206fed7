"""The folder of a run: filled under a hidden name beside its place, then put in place in one rename, so that it is complete or absent.

A run that ends early leaves nothing, or, once it has a checkpoint, the hidden folder, from which it can be resumed.
"""

import json
import logging
import math
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from editing.errors import InputError
from editing.files.format_version import Format
from orchestrator.heartbeat import Heartbeat, Owner
from orchestrator.jsonl import without_infinities

logger = logging.getLogger("ultraedit")

RUN = "run.json"

FORMAT = Format("run", 1)
"""``run.json``, and what else of a finished run is read: ``metrics.json``, ``turns.jsonl``, ``edits.parquet``."""

JOURNAL = frozenset({"ledger", "checkpoints", "turns.jsonl", "rejected.jsonl"})
"""What a run writes on the way, and is resumed from."""

CONTENT = JOURNAL | {"model", "delta", "adapter", "plots", RUN, "metrics.json", "edits.parquet"}
"""What a run writes into its folder. Anything else in it is never removed."""


class RunDirectory:
    """Context manager: files are written to :attr:`staging`; :meth:`commit` puts them in place; leaving without it removes them.

    Args:
        path: The folder to make; symbolic links in it are followed.
        overwrite: Replace an earlier run there, finished or not.
        resume: Go on in the folder of an unfinished run, if there is one.

    Raises:
        InputError: ``path`` exists and may not be replaced, or, on entering, another run is writing to it.

    Attributes:
        staging: Where files go until the commit.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
        self.path = Path(os.path.realpath(path))
        self._overwrite, self._resume = overwrite, resume
        self._check()
        self.staging = self._beside("partial", Owner.this())
        self._old = self._beside("old", Owner.this())
        self._heartbeat: Heartbeat | None = None
        self._made: list[Path] = []
        self._resumed = False
        self._branched: set[tuple[str, int, int]] = set()

    def __enter__(self) -> "RunDirectory":
        self._made = [parent for parent in self.path.parents if not parent.exists()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._clean_up_after_killed_runs()
            self._check()
            self.staging.mkdir(exist_ok=True)
            self._heartbeat = Heartbeat(self.staging)
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._clean()
        if self.is_unfinished:
            logger.warning("the run is kept up to its last checkpoint; continue it with: ultraedit edit --resume %s", self.path)

    @property
    def is_resumed(self) -> bool:
        """Whether :attr:`staging` was an unfinished run's."""
        return self._resumed

    @property
    def is_unfinished(self) -> bool:
        """Whether :attr:`staging` holds a checkpoint that the finished run has not, so that there is something to resume."""
        return not _checkpoints(self.staging) <= self._branched

    def discard(self) -> None:
        """Remove :attr:`staging` with all that is in it."""
        shutil.rmtree(self.staging, ignore_errors=True)

    def branch(self) -> None:
        """Start with a copy of the journal of the finished run at :attr:`path`, which stays as it is."""
        for name in JOURNAL:
            if (self.path / name).is_dir():  # files in there are written once, so that a link is as good as a copy
                shutil.copytree(self.path / name, self.staging / name, copy_function=link_or_copy)
            elif (self.path / name).is_file():
                shutil.copyfile(self.path / name, self.staging / name)
        self._branched = _checkpoints(self.staging)

    def require_space(self, num_bytes: int) -> None:
        """Check the free space before the work.

        Raises:
            InputError: Less than ``num_bytes`` is free.
        """
        free = shutil.disk_usage(self.staging).free
        if free < num_bytes:
            raise InputError(f"output: the edited model needs {math.ceil(num_bytes / 1e6)} MB, {self.path.parent} has {free // 10**6} MB free")

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file, readable by a person."""
        (self.staging / name).write_text(
            json.dumps(without_infinities(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )

    def write_run(self, values: dict[str, Any]) -> None:
        """Write ``run.json``, with its format version."""
        self.write_json(RUN, {**FORMAT.tag, **values})

    def commit(self) -> None:
        """Put the folder in place; an earlier one is removed only after that.

        Raises:
            InputError: Something that may not be replaced was put at ``path`` during the run.
        """
        self._check()
        with _ctrl_c_ignored():
            self._stop_heartbeat()
            if self.path.exists():
                self.path.rename(self._old)
            self.staging.rename(self.path)

    def _stop_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None

    def _clean(self) -> None:
        with _ctrl_c_ignored():
            self._stop_heartbeat()
            self._keep_journal() if self.is_unfinished else self.discard()
            self._restore(self._old)
            for parent in self._made:
                with suppress(OSError):
                    parent.rmdir()  # only if it is empty

    def _keep_journal(self) -> None:
        """Of an unfinished run keep only what it is resumed from: its results are made again."""
        for entry in self.staging.iterdir():
            if entry.name not in JOURNAL:
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)

    def _restore(self, old: Path) -> None:
        """Put an earlier folder that was moved aside back, unless a new one is in its place."""
        if old.exists() and not self.path.exists():
            old.rename(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def _beside(self, kind: str, owner: Owner) -> Path:
        return self.path.with_name(f".{self.path.name}.{kind}-{owner}")

    def _check(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise InputError(f"output: {self.path} is a file; expected a folder")
        names = {entry.name for entry in self.path.iterdir()}
        if foreign := sorted(names - CONTENT):
            raise InputError(f"output: {self.path} holds {foreign[0]!r}, which no run of this program wrote; choose a new folder")
        if names and RUN not in names:
            raise InputError(f"output: {self.path} holds files but no {RUN}, so it is no finished run; choose a new folder")
        if names and not self._overwrite:
            raise InputError(f"output: {self.path} already holds a run; choose a new folder or give --overwrite")

    def _clean_up_after_killed_runs(self) -> None:
        """Put back an earlier folder that a killed run had just moved aside, and remove what it wrote itself.

        Raises:
            InputError: The run that writes there is alive, or it can be resumed and neither that nor overwriting was asked for.
        """
        for left in self.path.parent.iterdir():
            for kind in ("old", "partial"):
                prefix = f".{self.path.name}.{kind}-"
                owner = Owner.parse(left.name.removeprefix(prefix)) if left.name.startswith(prefix) else None
                if owner is None:
                    continue
                if owner.is_alive(left):
                    raise InputError(f"output: process {owner} is writing to {self.path} now; choose a new folder, or remove {left} if it is dead")
                if kind == "old":
                    self._restore(left)
                elif _has_checkpoint(left):
                    self._take_over(left)
                if left != self.staging or not self._resumed:
                    shutil.rmtree(left, ignore_errors=True)

    def _take_over(self, left: Path) -> None:
        """Resume from the folder of an unfinished run, or leave it to be removed if that is allowed."""
        if self._resume and (left == self.staging or not self.staging.exists()):  # its own, if it begins again in one process
            left.rename(self.staging)
            self._resumed = True
        elif not self._overwrite:
            raise InputError(f"output: an unfinished run of {self.path} can be resumed: give --resume auto, or --overwrite to start anew")


def read_run(path: Path) -> dict[str, Any]:
    """The ``run.json`` of a finished run.

    Raises:
        InputError: There is none, it is damaged, or of a newer format version.
    """
    try:
        values = dict(json.loads((path / RUN).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path}: holds no {RUN}, so it is no finished run") from None
    except (NotADirectoryError, ValueError, TypeError):
        raise InputError(f"{path / RUN}: is not a run's {RUN}") from None
    FORMAT.version_of(values, path / RUN)
    return values


def find_unfinished(path: Path) -> Path | None:
    """The hidden folder of an unfinished run of ``path`` that can be resumed."""
    real = Path(os.path.realpath(path))
    if not real.parent.is_dir():
        return None
    left = (p for p in real.parent.iterdir() if p.name.startswith(f".{real.name}.partial-") and _has_checkpoint(p))
    return max(left, key=lambda p: p.stat().st_mtime, default=None)


def _has_checkpoint(folder: Path) -> bool:
    return bool(_checkpoints(folder))


def _checkpoints(folder: Path) -> set[tuple[str, int, int]]:
    """What tells the checkpoints in a folder from others, of the same turn too."""
    return {(found.name, (stat := found.stat()).st_ino, stat.st_ctime_ns) for found in (folder / "checkpoints").glob("turn-*")}


def link_or_copy(source: str, target: str) -> None:
    """Have a file under another name too; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Ignore Ctrl-C while folders are renamed and removed: afterwards there is a complete folder or none."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
