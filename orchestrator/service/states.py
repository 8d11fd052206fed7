"""The states of an edit, and which may follow which.

queued -> validated -> (approved) -> applied -> verified -> live
  |           |            |            a turn that passed its gates; live once its version is published
  `-----------`------------`--> rejected, quarantined, failed, superseded, expired, removed
"""

from typing import Literal

from editing.errors import InputError

State = Literal[
    "queued", "validated", "approved", "applied", "verified", "live", "rejected", "quarantined", "failed", "superseded", "expired", "removed"
]

WAITING: tuple[State, ...] = ("queued", "validated", "approved")
"""Not in the weights yet, and to come."""

WRITTEN: tuple[State, ...] = ("applied", "verified", "live", "superseded")
"""May be in the ledger of the current version."""

CURRENT: tuple[State, ...] = ("verified", "live")
"""In the weights, and what the model is supposed to say."""

_NEXT: dict[str, tuple[State, ...]] = {
    "queued": ("validated", "rejected", "superseded", "expired", "removed"),
    "validated": ("approved", "applied", "rejected", "quarantined", "failed", "superseded", "expired", "removed"),
    "approved": ("applied", "rejected", "quarantined", "failed", "superseded", "expired", "removed"),
    "applied": ("verified",),
    "verified": ("live", "quarantined", "superseded", "expired", "removed"),
    "live": ("verified", "quarantined", "superseded", "expired", "removed"),
    "superseded": ("verified", "live", "quarantined", "expired", "removed"),
    "quarantined": ("approved", "rejected", "removed"),
    "failed": ("approved", "rejected", "removed"),
    "rejected": (),
    "expired": (),
    "removed": (),
}

STATES = tuple(_NEXT)


class Conflict(InputError):
    """What was asked for does not go with the state that the thing is in."""


def check_change(edit: str, before: str, after: State) -> None:
    """Refuse a change of state that must not be.

    Raises:
        Conflict: Naming both states, and what could follow.
    """
    if after not in _NEXT[before]:
        allowed = ", ".join(_NEXT[before]) or "nothing"
        raise Conflict(f"edit {edit} is {before} and cannot become {after}; what can follow is {allowed}")
