"""Lifelong second moments ``mean z z'`` of whole keys or value gradients, for the preserving ridge and for whitening."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SecondMoment:
    """The sum of ``z z'`` over rows ``z`` of ``f`` features. Immutable: an update is a new object.

    Attributes:
        count: Rows so far.
        total: ``(f, f)`` float64.
    """

    count: int
    total: Tensor

    @classmethod
    def empty(cls, num_features: int, device: torch.device | str = "cpu") -> "SecondMoment":
        """Of no rows."""
        return cls(0, torch.zeros(num_features, num_features, dtype=torch.float64, device=device))

    def add(self, rows: Tensor) -> "SecondMoment":
        """With further rows ``(n, f)``."""
        wide = rows.double()
        return SecondMoment(self.count + len(rows), torch.addmm(self.total, wide.T, wide))

    def filled_up(self, prior: "SecondMoment") -> "SecondMoment":
        """Of at least as many rows as a prior: the rows that are missing are the prior's, and none where there are enough."""
        missing = prior.count - self.count
        return self if missing <= 0 else SecondMoment(prior.count, torch.add(self.total, prior.total, alpha=missing / prior.count))

    def mean(self) -> Tensor:
        """``(f, f)`` float64, ``mean z z'``; zeros if there are no rows."""
        return self.total / max(1, self.count)
