"""What two versions differ in: their edits, their gates, and how far their weights are apart."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from orchestrator.run.ledger import Entry, Ledger
from orchestrator.service import versions
from orchestrator.service.edits import NotFound
from orchestrator.service.folders import StateFolder
from orchestrator.service.rows import Row

_SHOWN = 1000


def diff(connection: Connection, folder: StateFolder, first: int, second: int) -> dict[str, Any]:
    """What the second version has that the first has not, and the reverse.

    Raises:
        NotFound: There is no such version, or its files are no longer kept.
    """
    rows = [versions.get(connection, number) for number in (first, second)]
    one, two = (_applied(folder, row) for row in rows)
    return {
        "from": first,
        "to": second,
        "added": [_shown(two[edit]) for edit in list(two.keys() - one.keys())[:_SHOWN]],
        "removed": [_shown(one[edit]) for edit in list(one.keys() - two.keys())[:_SHOWN]],
        "gates": {"from": rows[0]["gates"], "to": rows[1]["gates"]},
        "changed_modules": sorted(name for name, digest in rows[1]["digests"].items() if rows[0]["digests"].get(name) != digest),
    }


def _applied(folder: StateFolder, row: Row) -> Mapping[str, Entry]:
    if not folder.has_state(row["number"]):
        raise NotFound(f"version: the files of version {row['number']} are no longer kept")
    ledger = Ledger.first_parts(folder.run(row["run"]) / "ledger", folder.manifest(row["number"])["num_ledger_parts"])
    return {entry.id: entry for entry in ledger if entry.applied}


def _shown(entry: Entry) -> dict[str, Any]:
    return {"id": entry.id, "prompt": entry.request.prompt, **entry.request.in_short()}
