"""The state folder: runs and versions on the disk.

    runs/000001-turn0/    a run's folder: ledger, turns.jsonl, rejected.jsonl, checkpoints; written by one writer, in one lease
    versions/000004/      state.safetensors and manifest.json, links to the checkpoint that the version is
    published/run         the version that was published last, as a finished run; its exports are beside it
    service.db            the database, where it is SQLite

A writer never goes on in a folder of another one: it begins with a branch of it, whose files are links. So what a writer that
has lost its lease may still write is in a folder that nobody reads beyond the length that a version says.
"""

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from orchestrator.run.checkpoint import MANIFEST, STATE, Checkpoint, Checkpoints
from orchestrator.run.directory import link_or_copy

_JOURNAL = ("turns.jsonl", "rejected.jsonl")


class StateFolder:
    """The files of one service.

    Args:
        path: The folder; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._runs, self._versions = path / "runs", path / "versions"
        for folder in (path, self._runs, self._versions):
            folder.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)

    def run(self, name: str) -> Path:
        """A run's folder."""
        return self._runs / name

    def state(self, version: int) -> Path:
        """The file with a version's weights and statistics; it may be gone for an old one."""
        return self._version(version) / STATE

    def has_state(self, version: int) -> bool:
        """Whether a version's weights are still there."""
        return self.state(version).is_file()

    def manifest(self, version: int) -> dict[str, Any]:
        """What a version's checkpoint says of its run."""
        state: dict[str, Any] = json.loads((self._version(version) / MANIFEST).read_text(encoding="utf-8"))["state"]
        return state

    def new_run(self, epoch: int) -> str:
        """A name for a new run's folder."""
        number = max((int(path.name.partition("-")[0]) for path in self._runs.iterdir() if path.name[:6].isdecimal()), default=0) + 1
        name = f"{number:06d}-epoch{epoch}"
        self.run(name).mkdir()
        return name

    def branch(self, row: Any, epoch: int) -> str:
        """A new run that is what a version was: its ledger and its lines by their lengths then, and its checkpoint.

        Args:
            row: The version's row.
            epoch: That of the writer.

        Returns:
            The new run's name.
        """
        name, old = self.new_run(epoch), self.run(row["run"])
        new = self.run(name)
        shutil.copytree(old / "ledger", new / "ledger", copy_function=link_or_copy)
        for file in _JOURNAL:
            shutil.copyfile(old / file, new / file)
        self._link(self._version(row["number"]), new / "checkpoints" / f"turn-{row['turn']:08d}")
        return name

    def checkpoint(self, row: Any) -> Checkpoint:
        """A version's checkpoint, checked to be whole."""
        folder = self.run(row["run"]) / "checkpoints"
        target = folder / f"turn-{row['turn']:08d}"
        if not target.is_dir():
            self._link(self._version(row["number"]), target)
        return next(c for c in Checkpoints(folder).all() if c.turn == row["turn"])

    def keep(self, version: int, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint as a version. What a killed writer left under this number is replaced."""
        final = self._version(version)
        partial = final.with_name(f".{final.name}.partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        self._link(checkpoint.path, partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(self._versions)

    def clean(self, versions: Collection[int], runs: Collection[str]) -> None:
        """Remove the files of versions and the runs that are not among these."""
        for folder, kept in ((self._versions, {self._version(number).name for number in versions}), (self._runs, set(runs))):
            for path in folder.iterdir():
                if path.name not in kept:
                    shutil.rmtree(path, ignore_errors=True)

    def _version(self, number: int) -> Path:
        return self._versions / f"{number:06d}"

    def _link(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target, copy_function=link_or_copy)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
