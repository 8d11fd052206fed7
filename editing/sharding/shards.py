"""Which slice of a linear a worker holds, and which way round its weight lies.

A linear's weight is ``(d_out, d_in)``. A shard holds some of its columns, and then sees slices of the keys ``K``; or some of its
rows, and then sees slices of the value gradients ``G``:

    whole            K (n, d_in)    G (n, d_out)     nothing is sliced
    axis "keys"      K (n, slice)   G (n, d_out)     row-parallel: down_proj, o_proj, fc_out
    axis "values"    K (n, d_in)    G (n, slice)     column-parallel: gate_proj, up_proj, q_proj, fc_in

Whoever shards a model puts a :class:`LinearShard` on each sharded linear as its attribute ``shard``. A linear without one is whole.

A ``Conv1D``, which GPT-2 has for its linears, stores its weight ``(d_in, d_out)``. Only :meth:`LinearShard.turned` knows: what adds to a
weight, or factors a change of it, asks there. What moves, stores, compares or measures weights takes them as they are stored.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Shape = tuple[int, int]
"""``(d_in, d_out)`` of a whole linear."""

Ranges = tuple[range, ...]
"""Features of the sliced axis that one shard holds: one range, or several where fused projections are sliced one by one."""


@dataclass(frozen=True)
class LinearShard:
    """What one shard holds of a linear.

    Attributes:
        shape: ``(d_in, d_out)`` of the whole linear.
        axis: What is sliced; ``None`` if nothing is.
        held: Per shard, the features of that axis that it holds, in the order in which it holds them.
        rank: Which shard this is.
        transposed: Whether the weight is stored ``(d_in, d_out)``. Such a linear is not sliced.
    """

    shape: Shape
    axis: Literal["keys", "values"] | None = None
    held: tuple[Ranges, ...] = ()
    rank: int = 0
    transposed: bool = False

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Shape of the whole weight as it is stored."""
        return self.shape if self.transposed else (self.shape[1], self.shape[0])

    def turned(self, matrix: Tensor) -> Tensor:
        """A weight, or a change of it, as it is stored, seen as ``(d_out, d_in)``; and back again. A view, never a copy."""
        return matrix.T if self.transposed else matrix

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

    @property
    def key_span(self) -> Tensor | slice:
        """The same as a slice where they stand together, which takes no copy to an accelerator."""
        return _span(self.held[self.rank] if self.axis == "keys" else (range(self.shape[0]),)) or self.key_features

    @property
    def value_span(self) -> Tensor | slice:
        """The same of the value gradients."""
        return _span(self.held[self.rank] if self.axis == "values" else (range(self.shape[1]),), self.shape[0]) or self.value_features

    def scatter(self, values: Tensor) -> Tensor:
        """Place the values of held features among all features. The sum over the shards is then whole.

        Args:
            values: ``(k, num_keys + num_values)``.

        Returns:
            ``(k, d_in + d_out)``, with 0 for features of other shards. Features that all shards hold come from the first one.
        """
        whole = values.new_zeros(len(values), sum(self.shape))
        features = torch.cat((self.key_features, self.value_features)).to(values.device)
        whole[:, features] = values
        if self.rank and self.axis:
            whole[:, slice(self.shape[0], None) if self.axis == "keys" else slice(0, self.shape[0])] = 0
        return whole

    def slice(self, weight: Any) -> Tensor:
        """This shard's slice of a whole weight as it is stored: a tensor, or an unread slice of a safetensors file."""
        return take_ranges(weight, self.held[self.rank], 1 if self.axis == "keys" else 0) if self.axis else weight[:]

    def gather(self, slices: Sequence[Tensor]) -> Tensor:
        """The whole of something that is sliced like the weight.

        Args:
            slices: The slices of all shards in their order: of a ``(d_out, d_in)`` weight, of keys ``(n, d_in)``, or of
                transposed value gradients ``(d_out, n)``.
        """
        if not self.axis:
            return slices[0]
        keys = self.axis == "keys"
        whole = slices[0].new_empty(len(slices[0]) if keys else self.shape[1], self.shape[0] if keys else slices[0].shape[1])
        for ranges, held in zip(self.held, slices, strict=True):
            positions = _positions(ranges).to(held.device)
            if keys:
                whole[:, positions] = held
            else:
                whole[positions] = held
        return whole


def shard_of(linear: nn.Module) -> LinearShard:
    """What this worker holds of a linear."""
    shard: LinearShard | None = getattr(linear, "shard", None)
    if shard is not None:
        return shard
    if isinstance(linear, Conv1D):
        return LinearShard((linear.nx, linear.nf), transposed=True)
    assert isinstance(linear, nn.Linear)
    return LinearShard((linear.in_features, linear.out_features))


def linears_of(model: nn.Module, names: Iterable[str]) -> dict[str, LinearShard]:
    """What :func:`shard_of` says of a model's linears, by name. The model may be on the meta device."""
    return {name: shard_of(model.get_submodule(name)) for name in names}


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear, or a shard of one."""
    return isinstance(module, nn.Linear | Conv1D) or isinstance(getattr(module, "shard", None), LinearShard)


def take_ranges(source: Any, ranges: Ranges, dim: int) -> Tensor:
    """Chosen rows (``dim`` 0) or columns (1) of a tensor, or of an unread slice of a safetensors file."""
    pieces = [source[r.start : r.stop] if dim == 0 else source[:, r.start : r.stop] for r in ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def _length(ranges: Ranges) -> int:
    return sum(len(r) for r in ranges)


def _span(ranges: Ranges, after: int = 0) -> slice | None:
    """A single range as a slice, ``after`` further on."""
    return slice(after + ranges[0].start, after + ranges[0].stop) if len(ranges) == 1 else None


def _positions(ranges: Ranges) -> Tensor:
    return torch.tensor(list(chain.from_iterable(ranges)), dtype=torch.int64)
