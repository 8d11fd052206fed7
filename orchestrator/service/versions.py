"""Versions in the database: what the weights were, one row for each time that they changed."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from orchestrator.service.edits import NotFound
from orchestrator.service.rows import all_rows, first_row
from orchestrator.service.tables import settings, versions

LIVE = "live_version"


def head(connection: Connection) -> Mapping[str, Any] | None:
    """The newest version, which the writer goes on from; ``None`` before the first."""
    return first_row(connection, select(versions).order_by(versions.c.number.desc()).limit(1))


def get(connection: Connection, number: int) -> Mapping[str, Any]:
    """A version's row.

    Raises:
        NotFound: There is none with this number.
    """
    row = first_row(connection, select(versions).where(versions.c.number == number)) if abs(number) < 2**31 else None
    if row is None:
        raise NotFound(f"version: there is none with the number {number}; GET /v1/versions lists them")
    return row


def newest_first(connection: Connection, after: int | None, limit: int) -> tuple[list[Mapping[str, Any]], int | None]:
    """Versions, the newest first, and the number after which the next page begins."""
    query = select(versions).order_by(versions.c.number.desc()).limit(limit + 1)
    rows = all_rows(connection, query if after is None else query.where(versions.c.number < after))
    return rows[:limit], rows[limit - 1]["number"] if len(rows) > limit else None


def lineage(connection: Connection, number: int) -> list[Mapping[str, Any]]:
    """A version and those whose ledgers its own begins with, the newest first."""
    found: list[Mapping[str, Any]] = []
    following: int | None = number
    while following is not None:
        found.append(get(connection, following))
        following = found[-1]["parent"]
    return found


def add(connection: Connection, row: Mapping[str, Any]) -> None:
    """Add a version."""
    connection.execute(insert(versions).values(**row))


def live(connection: Connection) -> int:
    """Number of the version that is live; 0 for the unedited model."""
    return int(setting(connection, LIVE, 0))


def kept(connection: Connection, count: int) -> list[Mapping[str, Any]]:
    """Versions whose weights are kept: the unedited model, the live one and the newest."""
    newest = connection.execute(select(versions.c.number).order_by(versions.c.number.desc()).limit(count)).scalars().all()
    numbers: Sequence[int] = [0, live(connection), *newest]
    return all_rows(connection, select(versions).where(versions.c.number.in_(numbers)))


def mark_kept(connection: Connection, numbers: Sequence[int]) -> None:
    """Say of which versions the weights are still there."""
    connection.execute(update(versions).where(versions.c.number.not_in(numbers), versions.c.has_state).values(has_state=False))


def setting(connection: Connection, name: str, default: Any = None) -> Any:
    """A setting of the service."""
    row = connection.execute(select(settings.c.value).where(settings.c.name == name)).first()
    return default if row is None else row[0]


def set_setting(connection: Connection, name: str, value: Any) -> None:
    """Change a setting of the service."""
    if not connection.execute(update(settings).where(settings.c.name == name).values(value=value)).rowcount:
        connection.execute(insert(settings).values(name=name, value=value))


def count(connection: Connection) -> int:
    """Number of versions."""
    return int(connection.execute(select(func.count()).select_from(versions)).scalar_one())
