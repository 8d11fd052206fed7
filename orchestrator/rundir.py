"""The folder of a run: filled aside, then put in place in one rename, so that it is there whole or not at all."""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from editing.errors import InputError


class RunDirectory:
    """Context manager: files go to :attr:`staging`; :meth:`commit` puts them in place; leaving without it removes them.

    Args:
        path: The folder to make.
        overwrite: Replace an earlier run there.

    Raises:
        InputError: Something is at ``path`` already that may not be replaced.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path.absolute()
        self._check(overwrite)
        self.staging = self.path.with_name(f".{self.path.name}.partial-{os.getpid()}")

    def __enter__(self) -> "RunDirectory":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._sweep()
        self.staging.mkdir()
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)

    def require_space(self, num_bytes: int) -> None:
        """Refuse early what the disk cannot hold.

        Raises:
            InputError: Less than ``num_bytes`` is free.
        """
        free = shutil.disk_usage(self.staging).free
        if free < num_bytes:
            raise InputError(f"output: the edited model needs {num_bytes / 1e9:.2f} GB, {self.path.parent} has {free / 1e9:.2f} GB free")

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file, readable by a person."""
        (self.staging / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def commit(self) -> None:
        """Put the folder in place; an earlier one goes only when the new one is there."""
        old = self.path.with_name(f".{self.path.name}.old-{os.getpid()}")
        if self.path.exists():
            self.path.rename(old)
        self.staging.rename(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def _check(self, overwrite: bool) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise InputError(f"output: {self.path} is a file; expected a folder to make")
        if not any(self.path.iterdir()):
            return
        if not (self.path / "run.json").is_file():
            raise InputError(f"output: {self.path} holds files that are no run of this program; choose another folder")
        if not overwrite:
            raise InputError(f"output: {self.path} already holds a run; choose another folder or give --overwrite")

    def _sweep(self) -> None:
        """Remove what a killed run left beside the folder."""
        for left in self.path.parent.glob(f".{self.path.name}.partial-*"):
            with suppress(ValueError):
                if not _is_alive(int(left.name.rpartition("-")[2])):
                    shutil.rmtree(left, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
