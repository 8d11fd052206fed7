"""What the method leaves open. The defaults are the published method; a preset, a file or a flag may say otherwise."""

from dataclasses import dataclass, fields
from typing import get_args

from editing.errors import InputError
from editing.normalizer import MomentRule


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """How shifts are found.

    Attributes:
        moments: Rule of the lifelong moments.
        ridge: Strength of the ridge in the solve.
        passes: Shifts of one turn at the most; 1 is the published method. Each further one gives targets only to rows that are
            not settled, and costs a run of the suffix. More than one keeps a copy of the edited weights during a turn.
        margin: By how many nats the answer's log-probability must exceed every other token's for a row to be settled.
    """

    moments: MomentRule = "published"
    ridge: float = 1.0
    passes: int = 1
    margin: float = 0.0

    def __post_init__(self) -> None:
        check_number("ridge", self.ridge)
        check_number("margin", self.margin, or_zero=True)
        check_whole("passes", self.passes)
        check_choice("moments", self.moments, get_args(MomentRule))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all options."""
        return tuple(f.name for f in fields(MethodOptions))


def check_number(name: str, value: object, *, or_zero: bool = False) -> None:
    """Raise :class:`InputError` unless a value is a finite number above 0, or 0 where that is allowed."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value < float("inf") and (or_zero or value)):
        raise InputError(f"{name}: expected a finite number {'of at least' if or_zero else 'above'} 0, found {value!r}")


def check_whole(name: str, value: object, *, at_least: int = 1) -> None:
    """Raise :class:`InputError` unless a value is a whole number that is large enough."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InputError(f"{name}: expected a whole number of at least {at_least}, found {value!r}")


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise :class:`InputError` unless a value is one of the allowed ones."""
    if value not in allowed:
        raise InputError(f"{name}: expected one of {', '.join(allowed)}, found {value!r}")
