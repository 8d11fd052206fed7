"""Second moments of features that are whole, and what features that are sliced over shards need from each other."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from editing.method.shift import gram_matrix
from editing.sharding.collectives import Reductions
from editing.sharding.shards import Part


class Features:
    """The keys or the value gradients of one module, of which this worker may hold some features only.

    Args:
        part: What this worker holds of the module.
        axis: Which of both these are.
        reductions: How the shards' partial results become whole.
    """

    def __init__(self, part: Part, axis: Literal["keys", "values"], reductions: Reductions) -> None:
        self._part, self._axis, self._reductions = part, axis, reductions
        self._sliced = part.axis == axis
        self.num_features = part.shape[0 if axis == "keys" else 1]
        self.num_held = part.num_keys if axis == "keys" else part.num_values

    def gram(self, rows: Tensor) -> Tensor:
        """``(n, n)`` float64, products of rows ``(n, held)`` over all features."""
        return (self._reductions.total if self._sliced else self._reductions.common)(gram_matrix(rows))

    def common(self, values: Tensor) -> Tensor:
        """The same bits on every worker."""
        return self._reductions.common(values)

    def whole(self, rows: Tensor) -> Tensor:
        """``(n, f)`` given ``(n, held)``."""
        if not self._sliced:
            return rows
        return self._reductions.join(rows, self._part) if self._axis == "keys" else self._reductions.join(rows.T, self._part).T

    def held(self, rows: Tensor) -> Tensor:
        """``(n, held)`` given ``(n, f)``."""
        if not self._sliced:
            return rows
        positions = self._part.key_features if self._axis == "keys" else self._part.value_features - self._part.shape[0]
        return rows[:, positions.to(rows.device)]


@dataclass(frozen=True, slots=True)
class SecondMoment:
    """The sum of ``z z'`` over rows ``z``. Immutable: an update is a new object.

    Attributes:
        count: Rows so far.
        total: ``(f, f)`` float64.
    """

    count: int
    total: Tensor

    @classmethod
    def empty(cls, num_features: int, device: torch.device | str = "cpu") -> "SecondMoment":
        return cls(0, torch.zeros(num_features, num_features, dtype=torch.float64, device=device))

    def add(self, rows: Tensor) -> "SecondMoment":
        """With further rows ``(n, f)``."""
        wide = rows.double()
        return SecondMoment(self.count + len(rows), torch.addmm(self.total, wide.T, wide))

    def mean(self) -> Tensor:
        """``(f, f)`` float64, ``mean z z'``."""
        return self.total / max(1, self.count)
