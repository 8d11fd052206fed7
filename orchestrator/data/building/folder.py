"""The folder of a built set: filled aside, hidden, and put in place in one rename; it is there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from editing.errors import InputError
from orchestrator.heartbeat import Heartbeat, Owner


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``path`` on leaving without an error, and goes away with one.

    Raises:
        InputError: Something is at ``path``, or another process is making it now.
    """
    path = Path(os.path.realpath(path))
    _check(path)
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.building-{Owner.this()}")
    try:
        _sweep(path)
        aside.mkdir()
        heartbeat = Heartbeat(aside)
        try:
            yield aside
        finally:
            heartbeat.stop()
        _check(path)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()  # only if nothing came to lie in it


def _check(path: Path) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"output: {path} is there already; choose another folder, or remove it")


def _sweep(path: Path) -> None:
    """Remove what killed builds left."""
    prefix = f".{path.name}.building-"
    for left in path.parent.iterdir():
        owner = Owner.parse(left.name.removeprefix(prefix)) if left.name.startswith(prefix) else None
        if owner is None:
            continue
        if owner.is_alive(left):
            raise InputError(f"output: process {owner} is building {path} now; choose another folder, or remove {left} if it is not")
        shutil.rmtree(left, ignore_errors=True)
