"""A record while it is read: in the end it is known which of its fields nobody asked for."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, TypeVar

from editing.errors import InvalidRequest, on_one_line

_Value = TypeVar("_Value")

_ONE_TEXT = ("str", "text", "value", "name", "label", "answer", "string")
"""Keys under which data sets nest a text, beside its id and its aliases."""

_NEAR = 0.8
"""Likeness from which a misspelt name is taken for a known one."""


@dataclass(frozen=True, slots=True)
class Notes:
    """What reading a record leaves to say.

    Attributes:
        unread: Fields that the format does not know, each with the known field that it resembles, or ``None``.
        unused: Fields that the format knows and does not need.
        not_asked: Fields with more questions than are asked, or with questions that cannot be: how many.
        remarks: What makes the edit look as if it would change nothing.
    """

    unread: tuple[tuple[str, str | None], ...] = ()
    unused: tuple[str, ...] = ()
    not_asked: tuple[tuple[str, int], ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def unread_reason(self) -> str | None:
        """Why a strict reader refuses the record: its first unread field."""
        if not self.unread:
            return None
        name, near = self.unread[0]
        hint = f"did you mean {near}? " if near else ""
        return f"{name}: is not read; {hint}{'R' if near else 'r'}ename it or take it out, or go on without --strict"


NOTHING = Notes()


class Fields:
    """A record that remembers what was read of it.

    Args:
        record: The record, or an object in one.
        path: Names of the fields that lead to it, each with its dot.
    """

    def __init__(self, record: Mapping[str, Any], path: str = "") -> None:
        self._record = {name: value for name, value in record.items() if present(value) is not None}
        self._path, self._keys = path, record.keys()
        self._asked: set[str] = set()
        self._read: set[str] = set()
        self._inner: list[Fields] = []
        self._not_asked: dict[str, int] = {}
        self.remarks: list[str] = []

    def get(self, name: str) -> Any:
        """A field's value; ``None`` where it is missing, null or NaN, which is how pandas writes a null."""
        self._asked.add(name)
        self._read.add(name)
        return self._record.get(name)

    def find(self, *names: str) -> tuple[str, Any]:
        """The first of some fields that has a value, with its name; the others stay unread. The first name if none has."""
        self._asked.update(names)
        for name in names:
            if name in self._record:
                self._read.add(name)
                return name, self._record[name]
        return names[0], None

    def peek(self, name: str) -> Any:
        """As :meth:`get`, but it does not count as read."""
        return self._record.get(name)

    def __contains__(self, name: str) -> bool:
        """Whether the record has a field at all, were it null."""
        return name in self._keys

    def object(self, name: str) -> "Fields | None":
        """A field that holds an object, or a list of one; ``None`` if it holds something else."""
        value = self.get(name)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if not isinstance(value, Mapping):
            return None
        inner = Fields(value, f"{self._path}{name}.")
        self._inner.append(inner)
        return inner

    def names(self) -> list[str]:
        """Names of the fields that have a value."""
        return [name for name, value in self._record.items() if not _is_empty(value)]

    def not_ask(self, name: str, count: int) -> None:
        """Note that some questions of a field are not asked."""
        if count > 0:
            self._not_asked[name] = self._not_asked.get(name, 0) + count

    def notes(self, known: Collection[str]) -> Notes:
        """What was left.

        Args:
            known: Fields that the format knows and does not need.
        """
        left = [name for name in self.names() if name not in self._read]
        if not left and not self._inner and not self._not_asked and not self.remarks:
            return NOTHING
        inner = [one.notes(known) for one in self._inner]
        unread = [(self._shown(name), self._near(name)) for name in left if name not in known]
        return Notes(
            _once(*unread, *(one for notes in inner for one in notes.unread)),
            _once(*(self._shown(name) for name in left if name in known), *(one for notes in inner for one in notes.unused)),
            _once(*self._not_asked.items(), *(one for notes in inner for one in notes.not_asked)),
            _once(*self.remarks, *(one for notes in inner for one in notes.remarks)),
        )

    def _shown(self, name: str) -> str:
        return on_one_line(self._path + name)

    def _near(self, name: str) -> str | None:
        return near(name, tuple(sorted(self._asked - self._record.keys())))


def present(value: Any) -> Any:
    """A value, or ``None`` for NaN."""
    return None if isinstance(value, float) and value != value else value


@lru_cache(maxsize=1024)
def near(name: str, names: tuple[str, ...]) -> str | None:
    """The one of some names that a name may be a misspelling of."""
    alike = {other.lower().replace("-", "_"): other for other in reversed(names)}
    found = get_close_matches(name.strip().lower().replace("-", "_").replace(" ", "_"), alike, n=1, cutoff=_NEAR)
    return alike[found[0]] if found else None


def text_of(name: str, value: Any) -> Any:
    """The one text that a value holds, however it is nested: ``"a"``, ``["a"]``, ``{"str": "a"}``. What is no text stays as it is.

    Raises:
        InvalidRequest: It is a list of several, or an object that does not say which of its texts is meant.
    """
    if isinstance(value, list) and value:
        if len(value) > 1:
            raise InvalidRequest(name, f"expected one text, found a list of {len(value)}; keep the one that is meant")
        return text_of(name, value[0])
    if isinstance(value, Mapping) and value:
        keys = [key for key in _ONE_TEXT if present(value.get(key)) is not None]
        if len(keys) != 1:
            found = ", ".join(map(repr, list(value)[:5]))
            raise InvalidRequest(name, f"expected a non-empty string, or an object with one as 'str', found an object with {found}")
        return text_of(name, value[keys[0]])
    return present(value)


def identifier(value: Any) -> Any:
    """An id as a text; Parquet's whole numbers are floats in a column that has nulls."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if whole else str(int(value)) if isinstance(value, float) and value.is_integer() else value


def _once(*values: _Value) -> tuple[_Value, ...]:
    return tuple(dict.fromkeys(values))


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)
