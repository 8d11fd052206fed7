"""A turn that kills whoever writes it, by its memory say, must not be tried for ever, nor stop what waits behind it.

What a writer begins is written down, and struck out when it ends, well or not. What the next writer finds there is what the last one died of:
it tries the same turn once more, since most deaths have another cause, then half of it, and sets an edit aside that is alone and kills again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from editing.errors import WorkerLost
from orchestrator.service import versions
from orchestrator.service.database import Database
from orchestrator.service.lease import LeaseLost
from orchestrator.service.rows import Row

_NAME = "turn_begun"

DEATHS = 2
"""Writers that may die of the same edits before these are made fewer."""


class Attempts:
    """What was begun and not ended.

    Args:
        database: Where it is written down.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def choose(self, due: Sequence[Row]) -> tuple[list[Row], list[Row]]:
        """Of the edits that are due those to write now, and those to set aside because writers die of them."""
        begun = self._begun()
        again = [row for row in due if row["id"] in begun["edits"]]
        if not again:
            return list(due), []
        if begun["deaths"] < DEATHS:
            return again, []
        return ([], again) if len(begun["edits"]) == 1 else (again[: max(1, len(again) // 2)], [])

    @contextmanager
    def noted(self, rows: Sequence[Row]) -> Iterator[None]:
        """Write down that these are being written, for as long as the block runs."""
        begun, edits = self._begun(), [row["id"] for row in rows]
        deaths = begun["deaths"] if begun["edits"] == edits else 0
        self._note({"edits": edits, "deaths": deaths + 1})  # counts this one, until it ends
        try:
            yield
        except (WorkerLost, LeaseLost):  # a worker's death may be these edits' doing; and the lease's next holder writes here
            raise
        except BaseException:
            self._note(None)
            raise
        self._note(None)

    def forget(self) -> None:
        """Strike out what was begun."""
        self._note(None)

    def _begun(self) -> dict[str, Any]:
        with self._database.reading() as connection:
            return versions.setting(connection, _NAME) or {"edits": [], "deaths": 0}

    def _note(self, value: dict[str, Any] | None) -> None:
        with self._database.bookkeeping() as connection:
            versions.set_setting(connection, _NAME, value)
