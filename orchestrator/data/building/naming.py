"""From ids to names: each triple meets the names of its subject, then those of its object."""

from collections.abc import Iterable, Iterator

from editing.errors import InputError
from orchestrator.data.building.rows import Row, counted, digest

_ABOUT_NAMES = {"malformed alias line", "entity named twice"}


def by_subject(row: Row) -> int:
    """Brings a subject's triples to its names."""
    return digest(row.subject)


def by_object(row: Row) -> int:
    """Brings an object's triples to its names."""
    return digest(row.object if row.is_triple else row.subject)


def name_subjects(bucket: int, rows: Iterable[Row], *, strict: bool) -> Iterator[Row]:
    """Put the label of the subject in the place of its id.

    Args:
        bucket: Its number.
        rows: Those of the bucket, names before triples.
        strict: Raise at the first entity without a name.

    Raises:
        InputError: An entity has no name and ``strict`` is set.
    """
    for row, names in _met(rows, "subject", strict=strict):
        if row.note not in _ABOUT_NAMES:  # which are noted again when the objects meet the same names
            yield row._replace(subject=names[0]) if names else row


def name_objects(bucket: int, rows: Iterable[Row], *, strict: bool) -> Iterator[Row]:
    """Put the label of the object in the place of its id, and its other names beside it; as :func:`name_subjects`."""
    for row, names in _met(rows, "object", strict=strict):
        yield row._replace(object=names[0], names=names[1:]) if names else row


def _met(rows: Iterable[Row], field: str, *, strict: bool) -> Iterator[tuple[Row, list[str] | None]]:
    names: dict[str | None, list[str]] = {}
    for row in rows:
        if row.is_triple:
            id = getattr(row, field)
            if (found := names.get(id)) is not None:
                yield row, found
            elif strict:
                raise InputError(f"aliases: {id} has no name; add it, or build without --strict")
            else:
                yield counted("no name", row.relation, f"{id} has no name"), None
        elif row.names is None:
            yield row, None
        else:
            if row.subject in names:
                yield counted("entity named twice", example=row.subject), None
            names[row.subject] = min(row.names, names.get(row.subject, row.names))  # whichever line is read first
