"""Second moments of features that are whole, and what features that are sliced over shards need from each other."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from editing.method.shift import gram_matrix
from editing.sharding.collectives import Collectives
from editing.sharding.shards import LinearShard


class Features:
    """The keys or the value gradients of one module, of which this worker may hold some features only.

    Args:
        shard: What this worker holds of the module.
        axis: Which of both these are.
        collectives: How the shards' partial results become whole.
    """

    def __init__(self, shard: LinearShard, axis: Literal["keys", "values"], collectives: Collectives) -> None:
        self._shard, self._axis, self._collectives = shard, axis, collectives
        self._sliced = shard.axis == axis
        self.num_features = shard.shape[0 if axis == "keys" else 1]
        self.num_held = shard.num_keys if axis == "keys" else shard.num_values

    def gram(self, rows: Tensor) -> Tensor:
        """``(n, n)`` float64, products of rows ``(n, held)`` over all features."""
        return (self._collectives.all_reduce_sum if self._sliced else self._collectives.broadcast)(gram_matrix(rows))

    def broadcast(self, values: Tensor) -> Tensor:
        """The same bits on every worker."""
        return self._collectives.broadcast(values)

    def whole(self, rows: Tensor) -> Tensor:
        """``(n, f)`` given ``(n, held)``."""
        if not self._sliced:
            return rows
        return (
            self._collectives.all_gather_weight(rows, self._shard)
            if self._axis == "keys"
            else self._collectives.all_gather_weight(rows.T, self._shard).T
        )

    def held(self, rows: Tensor) -> Tensor:
        """``(n, held)`` given ``(n, f)``."""
        if not self._sliced:
            return rows
        positions = self._shard.key_features if self._axis == "keys" else self._shard.value_features - self._shard.shape[0]
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
