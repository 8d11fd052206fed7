"""Checkpoints: all of a run's state, written so that a crash at any moment leaves the last one whole.

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

logger = logging.getLogger("ultraedit")

STATE = "state.safetensors"
MANIFEST = "manifest.json"


class InvalidCheckpoint(Exception):
    """A checkpoint is torn, truncated or altered."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One valid checkpoint.

    Attributes:
        path: Its folder.
        state: What the run put into its manifest.
    """

    path: Path
    state: dict[str, Any]

    @property
    def turn(self) -> int:
        """Turns done when it was written, refused ones counted too."""
        return int(self.state["turn"])


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they are; made if missing.
        keep: Newest ones that are kept.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self._keep = keep

    def write(self, state: dict[str, Any], save: Callable[[Path], None]) -> Checkpoint:
        """Write one checkpoint and delete those that are too old.

        Args:
            state: The run's loop state; ``turn`` names the checkpoint.
            save: Writes the model's state to a path.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"turn-{state['turn']:08d}"
        partial = self.folder / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save(partial / STATE)
        _sync(partial / STATE)
        body = {"state": state, "files": {STATE: _describe(partial / STATE)}}
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
        """Valid checkpoints, oldest first; what is skipped is said."""
        found = []
        for name in self._names():
            try:
                found.append(_read(self.folder / name))
            except InvalidCheckpoint as error:
                logger.warning("checkpoint %s skipped: %s", self.folder / name, error)
        return found

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint."""
        valid = self.all()
        return valid[-1] if valid else None

    def _names(self) -> list[str]:
        return sorted(p.name for p in self.folder.glob("turn-*")) if self.folder.is_dir() else []


def _read(path: Path) -> Checkpoint:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        body = {"state": manifest["state"], "files": manifest["files"]}
        if manifest["sha256"] != _checksum(body):
            raise InvalidCheckpoint("its manifest was altered")
        for name, described in body["files"].items():
            if _describe(path / name) != described:
                raise InvalidCheckpoint(f"its {name} is truncated or altered")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidCheckpoint(f"it is incomplete ({type(error).__name__}: {error})") from None
    return Checkpoint(path, body["state"])


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    """Ask the disk to have it for good: a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
