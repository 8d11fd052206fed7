"""What the service is doing, as values and as Prometheus metrics. All of it is in the database, so that every front end says the same."""

import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, func, select

from orchestrator.service import edits, versions
from orchestrator.service.rows import all_rows, first_row
from orchestrator.service.states import STATES, WAITING
from orchestrator.service.tables import deliveries, gate_failures, lease
from orchestrator.service.tables import versions as version_table

_GATES = ("efficacy", "old_efficacy", "probes_kept", "probe_retention", "perplexity_growth", "weight_growth")


def status_of(connection: Connection, name: str) -> dict[str, Any]:
    """What the service is doing."""
    counts = edits.counts(connection)
    oldest = edits.oldest_waiting(connection, time.time())
    head, writer = versions.head(connection), first_row(connection, select(lease))
    last = select(version_table).where(version_table.c.kind == "turn").order_by(version_table.c.number.desc()).limit(1)
    turn = first_row(connection, last)
    return {
        "model": name,
        "version": None if head is None else head["number"],
        "live_version": versions.live(connection),
        "edits": {state: counts.get(state, 0) for state in STATES},
        "queue": sum(counts.get(state, 0) for state in WAITING),
        "oldest_seconds": None if oldest is None else max(0.0, time.time() - oldest),
        "turn_seconds": None if turn is None else turn["seconds"],
        "gates": {} if turn is None else turn["gates"],
        "gate_failures": int(connection.execute(select(func.count()).select_from(gate_failures)).scalar_one()),
        "writer": {"held_by": writer["owner"], "epoch": writer["epoch"], "renewals": writer["renewals"], "doing": writer["doing"]}
        if writer
        else None,
        "webhooks_waiting": _waiting_deliveries(connection),
    }


def metrics_of(connection: Connection, name: str) -> str:
    """The same in Prometheus' text format."""
    return "".join(line + "\n" for line in _lines(status_of(connection, name)))


def health_of(connection: Connection, count: int = 200) -> list[dict[str, Any]]:
    """Figures of the newest versions, the oldest of them first, for plots."""
    rows = all_rows(connection, select(version_table).order_by(version_table.c.number.desc()).limit(count))
    return [{"number": row["number"], "kind": row["kind"], **{name: row["gates"].get(name) for name in _GATES}} for row in reversed(rows)]


def _waiting_deliveries(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).select_from(deliveries).where(deliveries.c.state == "waiting")).scalar_one())


def _lines(status: dict[str, Any]) -> Iterator[str]:
    yield from _metric("queue_length", "gauge", "Edits that wait to be written.", status["queue"])
    yield from _metric("oldest_seconds", "gauge", "Age of the oldest edit that waits and may be written.", status["oldest_seconds"] or 0)
    yield from _metric("turn_seconds", "gauge", "Wall time of the last turn with its gates.", status["turn_seconds"])
    yield from _metric("version", "gauge", "Newest version.", status["version"])
    yield from _metric("live_version", "gauge", "Version that is live.", status["live_version"])
    yield from _metric("gate_failures_total", "counter", "Turns that were undone.", status["gate_failures"])
    yield from _metric("writer_epoch", "counter", "Writers that have held the lease.", (status["writer"] or {}).get("epoch", 0))
    yield from _metric("webhooks_waiting", "gauge", "Deliveries that wait.", status["webhooks_waiting"])
    yield from _head("edits", "gauge", "Edits by state.")
    yield from (f'ultraedit_edits{{state="{state}"}} {count}' for state, count in status["edits"].items())
    yield from _head("gate", "gauge", "Figures of the last turn's gates.")
    for name, value in status["gates"].items():
        if isinstance(value, (int, float)):
            yield f'ultraedit_gate{{figure="{_label(name)}"}} {value}'


def _metric(name: str, kind: str, told: str, value: Any) -> Iterator[str]:
    if value is not None:
        yield from _head(name, kind, told)
        yield f"ultraedit_{name} {value}"


def _head(name: str, kind: str, told: str) -> Iterator[str]:
    yield f"# HELP ultraedit_{name} {told}"
    yield f"# TYPE ultraedit_{name} {kind}"


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
