"""The local database of an MLflow tracking URI, made whole or not at all, by one process of those that start together.

MLflow makes its tables by dozens of migrations and guards them against nobody: two processes that do it at once leave a
database that no later one can use ("duplicate column name"), and so does one that is killed on the way. So it is made under
another name by the process that holds a lock, and put in place in one rename.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from editing.errors import UltraEditError

SQLITE = "sqlite:///"


class BrokenDatabase(UltraEditError):
    """A database that MLflow cannot use.

    Args:
        path: Its file.
        reason: What SQLite or MLflow says.
    """

    def __init__(self, path: Path, reason: str) -> None:
        what = "upgrade it with 'mlflow db upgrade', or move it away" if "out-of-date" in reason else "move it away, or restore it from a backup"
        super().__init__(f"{path} is no database that this version of MLflow can use ({reason}): {what}, or give another --tracking-uri")


def database_of(uri: str) -> Path | None:
    """The file of a tracking URI that names a SQLite database, as an absolute path; ``None`` for any other URI."""
    name = uri.removeprefix(SQLITE).partition("?")[0]
    return Path(name).resolve() if uri.startswith(SQLITE) and name not in ("", ":memory:") else None


def absolute_uri(uri: str) -> str:
    """A tracking URI that names the same database from any working directory."""
    _, mark, query = uri.partition("?")
    database = database_of(uri)
    return uri if database is None else f"{SQLITE}{database}{mark}{query}"


def prepare_database(path: Path) -> None:
    """Make an MLflow database unless there is one. Waits while another process makes it.

    Raises:
        BrokenDatabase: What is there is none.
        OSError: Nothing can be written there.
    """
    if _is_there(path):
        _check_readable(path)
        return
    with _lock(path.with_name(f".{path.name}.lock")):
        if _is_there(path):
            return
        partial = path.with_name(f".{path.name}.partial")  # whatever a killed process left of it goes
        with _removed(partial):
            _create(partial)
            partial.replace(path)


def _create(path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"{SQLITE}{path}")
    client.search_experiments(max_results=1)


def _check_readable(path: Path) -> None:
    """See that a file is a database at all: where it is none, MLflow would try to open it for minutes."""
    if path.is_dir():
        raise BrokenDatabase(path, "it is a folder")
    try:  # not read-only, which refuses one whose last writer was killed
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as connection:
            connection.execute("select count(*) from sqlite_master").fetchall()
    except sqlite3.DatabaseError as error:
        if "locked" not in str(error):  # by a process that writes to it at the moment
            raise BrokenDatabase(path, str(error)) from None


def _is_there(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0  # an empty file is an empty database


@contextmanager
def _removed(path: Path) -> Iterator[None]:
    """Without a database and its journal, before and after."""

    def remove() -> None:
        for name in (path.name, f"{path.name}-journal"):
            path.with_name(name).unlink(missing_ok=True)

    remove()
    try:
        yield
    finally:
        remove()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock that the system takes back from a process that ends. Its file is removed with it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                break
        os.close(handle)  # the one that held it has removed this file: lock the one that is there now
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
