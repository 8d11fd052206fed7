"""The keys or the value gradients of one module, of whose features a shard may hold a slice.

Every product over features in the method goes through here, so that its formulas read the same for one worker and for many:

    n      rows                 f       features of the whole module: d_in of the keys, d_out of the value gradients
    held   features that this worker holds; f where the axis is not sliced
"""

from typing import Literal

from torch import Tensor

from editing.method.shift import gram_matrix
from editing.sharding.collectives import Collectives
from editing.sharding.shards import LinearShard


class Features:
    """One axis of one module.

    Args:
        shard: What this worker holds of the module.
        axis: Whether these are its keys or its value gradients.
        collectives: How the shards' partial results become whole.

    Attributes:
        num_features: ``f``.
        num_held: Features that this worker holds.
    """

    def __init__(self, shard: LinearShard, axis: Literal["keys", "values"], collectives: Collectives) -> None:
        self._shard, self._axis, self._collectives = shard, axis, collectives
        self._sliced = shard.axis == axis
        self.num_features = shard.shape[0 if axis == "keys" else 1]
        self.num_held = shard.num_keys if axis == "keys" else shard.num_values

    def gram(self, rows: Tensor) -> Tensor:
        """``(n, n)`` float64: products of rows ``(n, held)`` over all features, the same bits on every worker."""
        return self._sum(gram_matrix(rows))

    def squared_norms(self, rows: Tensor) -> Tensor:
        """``(n,)``: squared norms of rows ``(n, held)`` over all features, the same bits on every worker."""
        return self._sum(rows.square().sum(1))

    def broadcast(self, values: Tensor) -> Tensor:
        """The first worker's bits, on every worker."""
        return self._collectives.broadcast(values)

    def all_gather(self, rows: Tensor) -> Tensor:
        """``(n, f)``, given the held slice ``(n, held)``."""
        if not self._sliced:
            return rows
        if self._axis == "keys":
            return self._collectives.all_gather_weight(rows, self._shard)
        return self._collectives.all_gather_weight(rows.T, self._shard).T

    def slice(self, rows: Tensor) -> Tensor:
        """The held slice ``(n, held)`` of ``(n, f)``."""
        if not self._sliced:
            return rows
        positions = self._shard.key_features if self._axis == "keys" else self._shard.value_features - self._shard.shape[0]
        return rows[:, positions.to(rows.device)]

    def _sum(self, partial: Tensor) -> Tensor:
        """Over the shards where features are sliced; else every shard has the sum, up to rounding."""
        return self._collectives.all_reduce_sum(partial) if self._sliced else self._collectives.broadcast(partial)
