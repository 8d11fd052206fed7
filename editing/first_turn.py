"""The turn that finds the learning rate: it is written, looked at, and written again until it does no harm and holds.

    harm?    yes: half the strength, until there is none
    holds?   less than the goal: a higher strength, until it does, or that does harm or teaches no more

Differences from the published implementation
    * It has a learning rate of its own for each model, and no such turn.
"""

from collections.abc import Callable

from editing.errors import TurnRefused
from editing.turn import TurnReport

ENOUGH = 50
"""Edits of a turn of which the share that holds tells what rate a model wants. Fewer hold at rates that teach a full turn too little."""

_MOST_RISES = 6
"""How often the turn is written again at a higher strength."""


def find_strength(
    write: Callable[[float], TurnReport],
    take_back: Callable[[], None],
    held: Callable[[], float],
    is_harmless: Callable[[], bool],
    *,
    goal: float,
    most_halvings: int,
) -> tuple[TurnReport, float, int]:
    """Write a turn at the strength that it wants.

    Args:
        write: Writes the turn at a share of the configured strength.
        take_back: Undoes it.
        held: Share of what was written that is answered right now.
        is_harmless: Looks at the model.
        goal: Share that is to hold; with one, the search begins at half of the configured strength. 0 takes that strength as it is.
        most_halvings: After so many the turn stays, whatever it does.

    Returns:
        The report of the turn as it stays, its share of the configured strength, and the number of halvings.
    """
    share, halvings = 0.5 if goal else 1.0, 0
    report = write(share)
    while halvings < most_halvings and not is_harmless():
        take_back()
        share, halvings = share / 2, halvings + 1
        report = write(share)
    if not goal or halvings:
        return report, share, halvings
    now = held()
    for _ in range(_MOST_RISES):
        if now >= goal:
            break
        before, higher = now, share * (2.0 if now < goal / 2 else 2.0**0.5)
        take_back()
        try:
            raised = write(higher)
        except TurnRefused:  # and the weights are as they were before it
            return write(share), share, halvings
        now = held()
        if now < before or now == before > 0 or not is_harmless():
            take_back()
            return write(share), share, halvings
        report, share = raised, higher
    return report, share, halvings
