"""Probes: questions that must stay, a person's own and those that edits bring."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, update

from orchestrator.service.database import Work
from orchestrator.service.edits import NotFound
from orchestrator.service.rows import all_rows
from orchestrator.service.tables import probes


@dataclass(frozen=True, slots=True)
class Probe:
    """A question that must stay.

    Attributes:
        id: Its id; empty for one that an edit brought.
        prompt: The question.
        answer: What the model must say.
        suite: What it belongs to.
    """

    id: str
    prompt: str
    answer: str
    suite: str = ""


def add_probes(work: Work, wanted: Sequence[Mapping[str, Any]], suite: str) -> list[str]:
    """Add questions; their ids. One without an answer gets the unedited model's, which the writer asks for."""
    rows = [
        {
            "id": f"p-{secrets.token_hex(6)}",
            "prompt": probe["prompt"],
            "answer": probe.get("answer"),
            "suite": suite,
            "created": work.now,
            "actor": work.actor,
        }
        for probe in wanted
    ]
    work.connection.execute(insert(probes), rows)
    work.note(probes=[row["id"] for row in rows], suite=suite)
    return [row["id"] for row in rows]


def remove_probe(work: Work, probe: str) -> None:
    """Ask a question no more.

    Raises:
        NotFound: There is none with this id.
    """
    found = work.connection.execute(update(probes).where(probes.c.id == probe, probes.c.removed.is_(None)).values(removed=work.now))
    if not found.rowcount:
        raise NotFound(f"probe: there is none with the id {probe!r}; GET /v1/probes lists them")
    work.note(probe=probe)


def list_probes(connection: Connection, after: int | None, limit: int) -> tuple[list[Mapping[str, Any]], int | None]:
    """Questions that are asked, the newest first, and the number after which the next page begins."""
    query = select(probes).where(probes.c.removed.is_(None)).order_by(probes.c.seq.desc()).limit(limit + 1)
    rows = all_rows(connection, query if after is None else query.where(probes.c.seq < after))
    return rows[:limit], rows[limit - 1]["seq"] if len(rows) > limit else None


def standing_probes(connection: Connection) -> list[Probe]:
    """All questions whose answer is known."""
    rows = all_rows(connection, select(probes).where(probes.c.removed.is_(None)).order_by(probes.c.seq))
    known = ((row, row["answer"] if row["answer"] is not None else row["base_answer"]) for row in rows)
    return [Probe(row["id"], row["prompt"], answer, row["suite"]) for row, answer in known if answer is not None]


def unanswered(connection: Connection) -> list[Mapping[str, Any]]:
    """Questions whose answer the unedited model was not asked for yet."""
    query = select(probes).where(probes.c.removed.is_(None), probes.c.answer.is_(None), probes.c.base_answer.is_(None)).limit(64)
    return all_rows(connection, query)


def answer_probe(connection: Connection, probe: str, answer: str) -> None:
    """Write down what the unedited model says."""
    connection.execute(update(probes).where(probes.c.id == probe).values(base_answer=answer))


def extra_probes(rows: Iterable[Mapping[str, Any]]) -> list[Probe]:
    """Questions that edits brought, as far as they have answers."""
    asked = ((row["id"], probe) for row in rows for probe in row["request"].get("probes") or ())
    return [Probe("", probe["prompt"], probe["answer"], f"of {edit}") for edit, probe in asked if probe.get("answer")]


def mark_probes(connection: Connection, lost: Sequence[Probe]) -> None:
    """Write down which questions kept their answers at the last gate."""
    gone = [probe.id for probe in lost if probe.id]
    connection.execute(update(probes).where(probes.c.removed.is_(None)).values(kept=True))
    if gone:
        connection.execute(update(probes).where(probes.c.id.in_(gone)).values(kept=False))
