"""Dry runs: what edits would do. They are applied to the newest version, measured, and undone; nothing is kept."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select

from editing.errors import InvalidRequest
from orchestrator.service.admission import Admission
from orchestrator.service.database import Database
from orchestrator.service.edits import prompt_key_of, request_of
from orchestrator.service.head import Head
from orchestrator.service.rows import all_rows
from orchestrator.service.states import CURRENT, WAITING
from orchestrator.service.tables import edits

_COMPARED = 5000
"""Newest edits that are looked through for near duplicates."""

_NEAR = 0.7
"""Share of three-letter pieces that two prompts have in common, from which they count as near duplicates."""


def foresee(database: Database, head: Head, admission: Admission, asked: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What would happen to edits.

    Args:
        database: Where the others are.
        head: The newest version, which is changed and must be undone by who calls.
        admission: Tries the turn.
        asked: The edits, each with ``prompt``, ``target`` and ``request``.
    """
    rows = [{"id": f"dry-{i}", "prompt_key": prompt_key_of(edit), **edit} for i, edit in enumerate(asked)]
    problems = [problem_of(head, row) for row in rows]
    usable = [row for row, problem in zip(rows, problems, strict=True) if problem is None]
    verdict = admission.try_out([request_of(row) for row in usable], usable) if usable else None
    efficacy = dict(zip([row["id"] for row in usable], verdict.efficacy, strict=False)) if verdict else {}
    items = [
        {"rejected": problem, "efficacy": efficacy.get(row["id"]), **_others(database, row, rows)}
        for row, problem in zip(rows, problems, strict=True)
    ]
    gate = {"passed": verdict.passed, "gate": verdict.gate, "reason": verdict.reason, "figures": dict(verdict.figures)} if verdict else None
    return {"items": items, "gates": gate, "version": head.row["number"]}


def problem_of(head: Head, row: Mapping[str, Any]) -> str | None:
    """Why the model cannot be asked for an edit, if it cannot."""
    try:
        head.run.tokenizer.tokenize(request_of(row), 0)
    except InvalidRequest as error:
        return str(error)
    return None


def _others(database: Database, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    query = select(edits.c.id, edits.c.prompt, edits.c.target, edits.c.prompt_key, edits.c.state)
    query = query.where(edits.c.state.in_((*WAITING, *CURRENT))).order_by(edits.c.seq.desc()).limit(_COMPARED)
    with database.reading() as connection:
        known = all_rows(connection, query)
    known += [other for other in rows if other["id"] != row["id"]]
    same = [other for other in known if other["prompt_key"] == row["prompt_key"]]
    conflicts = [_shown(other) for other in same if other["target"].strip() != row["target"].strip()]
    duplicates = [_shown(other) for other in same if other["target"].strip() == row["target"].strip()]
    pieces = _pieces(row["prompt"])
    near = [{**_shown(other), "likeness": round(likeness, 3)} for other in known if (likeness := _likeness(pieces, other, row)) >= _NEAR]
    return {"conflicts": conflicts, "duplicates": duplicates, "near_duplicates": sorted(near, key=lambda n: -n["likeness"])[:10]}


def _shown(other: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": other["id"], "prompt": other["prompt"], "target": other["target"], "state": other.get("state", "in this request")}


def _pieces(text: str) -> set[str]:
    plain = f"  {' '.join(text.casefold().split())} "
    return {plain[i : i + 3] for i in range(len(plain) - 2)}


def _likeness(pieces: set[str], other: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    if other["prompt_key"] == row["prompt_key"]:
        return 0.0
    theirs = _pieces(other["prompt"])
    return len(pieces & theirs) / len(pieces | theirs)
