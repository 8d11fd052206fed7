"""Which part of a linear a worker holds.

A linear's weight is ``(d_out, d_in)``. A shard holds some of its columns, and then sees slices of the keys, or some of
its rows, and then sees slices of the value gradients:

    whole            K (n, d_in)    G (n, d_out)     nothing is sliced
    axis "keys"      K (n, part)    G (n, d_out)     row-parallel: down_proj, o_proj, fc_out
    axis "values"    K (n, d_in)    G (n, part)      column-parallel: gate_proj, up_proj, q_proj, fc_in

Whoever cuts a model puts a :class:`LinearShard` on each cut linear as its attribute ``shard``; a linear without one is whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

Shape = tuple[int, int]
"""``(d_in, d_out)`` of a whole linear."""

Ranges = tuple[range, ...]
"""Features that one shard holds of the sliced axis: one range, or several where fused projections are cut one by one."""


@dataclass(frozen=True)
class LinearShard:
    """What one shard holds of a linear.

    Attributes:
        shape: ``(d_in, d_out)`` of the whole linear.
        axis: What is sliced; ``None`` if nothing is.
        held: Per shard the features that it holds of that axis, in the order in which it holds them.
        rank: Whose part this is.
    """

    shape: Shape
    axis: Literal["keys", "values"] | None = None
    held: tuple[Ranges, ...] = ()
    rank: int = 0

    @property
    def num_keys(self) -> int:
        """Input features held."""
        return _length(self.held[self.rank]) if self.axis == "keys" else self.shape[0]

    @property
    def num_values(self) -> int:
        """Output features held."""
        return _length(self.held[self.rank]) if self.axis == "values" else self.shape[1]

    @cached_property
    def key_features(self) -> Tensor:
        """Positions ``(num_keys,)`` of the held keys in ``z = [K | G]``."""
        return _positions(self.held[self.rank]) if self.axis == "keys" else torch.arange(self.shape[0])

    @cached_property
    def value_features(self) -> Tensor:
        """Positions ``(num_values,)`` of the held value gradients in ``z = [K | G]``."""
        return self.shape[0] + (_positions(self.held[self.rank]) if self.axis == "values" else torch.arange(self.shape[1]))

    def spread(self, values: Tensor) -> Tensor:
        """Held features' values laid out over all features, for a sum over shards that puts the whole together.

        Args:
            values: ``(k, num_keys + num_values)``.

        Returns:
            ``(k, d_in + d_out)``, 0 where another shard speaks for a feature; the first one does for those that all hold.
        """
        whole = values.new_zeros(len(values), sum(self.shape))
        features = torch.cat((self.key_features, self.value_features)).to(values.device)
        whole[:, features] = values
        if self.rank and self.axis:
            whole[:, slice(self.shape[0], None) if self.axis == "keys" else slice(0, self.shape[0])] = 0
        return whole

    def cut(self, weight: Any) -> Tensor:
        """This part of a whole ``(d_out, d_in)`` weight, a tensor or an unread slice of a safetensors file."""
        return take(weight, self.held[self.rank], 1 if self.axis == "keys" else 0) if self.axis else weight[:]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The whole ``(d_out, d_in)`` weight, given the parts of all shards in their order; or anything else that is sliced alike,
        such as keys ``(n, d_in)`` or transposed value gradients ``(d_out, n)``."""
        if not self.axis:
            return parts[0]
        keys = self.axis == "keys"
        whole = parts[0].new_empty(len(parts[0]) if keys else self.shape[1], self.shape[0] if keys else parts[0].shape[1])
        for ranges, part in zip(self.held, parts, strict=True):
            positions = _positions(ranges).to(part.device)
            if keys:
                whole[:, positions] = part
            else:
                whole[positions] = part
        return whole


def shard_of(linear: nn.Linear) -> LinearShard:
    """The part that a module holds."""
    shard: LinearShard | None = getattr(linear, "shard", None)
    return LinearShard((linear.in_features, linear.out_features)) if shard is None else shard


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear, or a shard of one."""
    return isinstance(module, nn.Linear) or isinstance(getattr(module, "shard", None), LinearShard)


def take(source: Any, ranges: Ranges, dim: int) -> Tensor:
    """Chosen rows (``dim`` 0) or columns (1) of a tensor, or of an unread slice of a safetensors file."""
    pieces = [source[r.start : r.stop] if dim == 0 else source[:, r.start : r.stop] for r in ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def _length(ranges: Ranges) -> int:
    return sum(len(r) for r in ranges)


def _positions(ranges: Ranges) -> Tensor:
    return torch.tensor(list(chain.from_iterable(ranges)), dtype=torch.int64)
