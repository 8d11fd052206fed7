"""Checkpoints: all state of a run, written so that a crash at any moment leaves the one before intact.

checkpoints/.turn-00000020.partial/   state.safetensors, fsynced
                                      manifest.json, its checksum inside, fsynced: its presence says "complete"
checkpoints/turn-00000020/            the same after one rename
then the new one is read back, and only if it is valid are old ones deleted
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editing.files.format_version import Format

logger = logging.getLogger("ultraedit")

STATE = "state.safetensors"
MANIFEST = "manifest.json"

FORMAT = Format("checkpoint", 2)
"""The manifest: its checksum covers everything else in it. Version 2 says its version; version 1 differs in nothing else."""


_PREFIX = "turn-"


class InvalidCheckpoint(Exception):
    """A checkpoint is torn, truncated or altered."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One valid checkpoint.

    Attributes:
        path: Its folder.
        turn: Turns done when it was written, refused ones counted too.
        state: What the run put into its manifest.
    """

    path: Path
    turn: int
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they are; made if missing.
        keep: Newest ones that are kept.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self._keep = keep

    def write(self, turn: int, state: dict[str, Any], save: Callable[[Path], None]) -> Checkpoint:
        """Write one checkpoint and delete those that are too old.

        Args:
            turn: Turns so far; the checkpoint's name.
            state: The run's loop state, as plain values.
            save: Writes the model's state to a path.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"{_PREFIX}{turn:08d}"
        partial = self.folder / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save(partial / STATE)
        _sync(partial / STATE)
        body = {**FORMAT.tag, "state": state, "files": {STATE: _describe(partial / STATE)}}
        (partial / MANIFEST).write_text(json.dumps({**body, "sha256": _checksum(body)}), encoding="utf-8")
        _sync(partial / MANIFEST)
        _sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(self.folder)
        written = _read(final)
        for old in self._names()[: -self._keep]:
            shutil.rmtree(self.folder / old, ignore_errors=True)
        return written

    def all(self) -> list[Checkpoint]:
        """Valid checkpoints, oldest first, with a warning for each that is skipped.

        Raises:
            InputError: One was written by a newer version of this program.
        """
        found = []
        for name in self._names():
            try:
                found.append(_read(self.folder / name))
            except InvalidCheckpoint as error:
                logger.warning("checkpoint %s skipped: %s", self.folder / name, error)
        return found

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint. Raises as :meth:`all` does."""
        valid = self.all()
        return valid[-1] if valid else None

    def _names(self) -> list[str]:
        return sorted(p.name for p in self.folder.glob(f"{_PREFIX}*")) if self.folder.is_dir() else []


def _read(path: Path) -> Checkpoint:
    try:
        turn = int(path.name.removeprefix(_PREFIX))
        body = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        FORMAT.version_of(body, path / MANIFEST)  # before anything else: one of a newer version must not be taken for a damaged one
        if body.pop("sha256") != _checksum(body):
            raise InvalidCheckpoint("its manifest was altered")
        for name, described in body["files"].items():
            if _describe(path / name) != described:
                raise InvalidCheckpoint(f"its {name} is truncated or altered")
        state = body["state"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidCheckpoint(f"it is incomplete ({type(error).__name__}: {error})") from None
    return Checkpoint(path, turn, state)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
