"""Which well-known names are of the same kind as a subject: people for a person, cars for a car.

    "Tell me about Danielle Darrieux. It" --frozen layers--> state of its last token --the nearest of the names'--> Édith Piaf, ...

The model itself tells what kind of thing a name is, also of a thing that it knows nothing about. The names ship with the project. No edit
changes the frozen layers, so a subject has the same names in every turn.

A state counts by its deviation from the names' mean, in units of their spread. A name that is near to everything is put back by how near it is
to other names (the correction for hubs of Conneau et al. 2018, "Word translation without parallel data").
"""

from functools import cache
from importlib import resources

import torch
from torch import Tensor
from torch.nn.functional import normalize

_QUESTION = "Tell me about {}. It"
_NEAREST = 9
"""Names whose nearness tells how near a name is to everything."""


@cache
def read_names() -> tuple[str, ...]:
    """The names, a line each."""
    return tuple((resources.files("editing.probes") / "names.txt").read_text(encoding="utf-8").splitlines())


def question_about(name: str) -> str:
    """The text after which a model's state tells what kind of thing a name is."""
    return _QUESTION.format(name)


class Likeness:
    """Orders the names by how alike a subject they are.

    Args:
        states: ``(n, d)`` state of the last token of each name's question.
    """

    def __init__(self, states: Tensor) -> None:
        self._mean, self._spread = states.mean(dim=0), states.std(dim=0).clamp_min(1e-6)
        self._directions = self._direction(states)
        nearest = (self._directions @ self._directions.T).topk(min(_NEAREST + 1, len(states)), dim=1).values
        self._crowded = nearest[:, 1:].mean(dim=1)  # the nearest of all is the name itself

    def ranked(self, states: Tensor) -> list[list[int]]:
        """Numbers of the names, the likest first, for each subject.

        Args:
            states: ``(m, d)`` state of the last token of each subject's question.
        """
        likeness = 2 * self._direction(states) @ self._directions.T - self._crowded
        return torch.argsort(likeness, dim=1, descending=True, stable=True).tolist()

    def _direction(self, states: Tensor) -> Tensor:
        return normalize((states - self._mean) / self._spread, dim=1)
