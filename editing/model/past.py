"""What attention keeps of tokens that precede others: their keys and values, by layer, in the form that a decoder's body takes."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicLayer

KeysAndValues = tuple[Tensor, Tensor]
"""Of one layer and sequence, ``(heads, p, d_head)`` each; this worker's heads."""


class Kept(DynamicLayer):
    """A layer of a cache that begins without a copy to an accelerator."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states.new_empty(0), value_states.new_empty(0)
        self.is_initialized = True

    @classmethod
    def of(cls, keys: Tensor, values: Tensor) -> "Kept":
        """One that has seen tokens."""
        layer = cls()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        return layer


@dataclass(frozen=True, slots=True)
class Past:
    """What attention keeps of the tokens before those of a batch, with pads at the left.

    Attributes:
        layers: Keys and values ``(B, heads, P, d_head)`` of each layer from ``start`` on.
        lengths: ``(B,)`` tokens that are no pads.
        start: The first layer that has any.
    """

    layers: list[KeysAndValues]
    lengths: Tensor
    start: int

    def arguments(self, body: Any, width: int, kept: type[Kept] = Kept) -> dict[str, Any]:
        """Further arguments of a decoder's body that runs ``width`` tokens after these. Good for one run: the cache grows in it.

        Args:
            body: The body.
            width: Tokens that run.
            kept: The kind of the cache's layers.
        """
        keys, _ = self.layers[0]
        below = keys[..., :1].expand_as(keys)  # in layers that do not run; masks are made for the length that the first one has
        cache = Cache(layers=[kept.of(*layer) for layer in [(below, below)] * self.start + self.layers])
        padded, new = keys.shape[2], torch.arange(width, device=keys.device)
        seen = torch.arange(padded + width, device=keys.device) >= padded - self.lengths.unsqueeze(1)
        given = {"past_key_values": cache, "attention_mask": seen.long(), "position_ids": self.lengths.unsqueeze(1) + new}
        accepted = inspect.signature(body.forward).parameters
        return {name: value for name, value in given.items() if name in accepted}


class Seen(Kept):
    """A layer that keeps no new tokens: where no gradient is taken, the keys and values of one layer are in memory at a time."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> KeysAndValues:
        """All keys and values, with the new tokens'."""
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def padded(several: Sequence[Tensor]) -> Tensor:
    """``(B, heads, P, d_head)`` of ``(heads, p, d_head)`` each, with zeros at the left."""
    longest = max(one.shape[1] for one in several)
    return torch.stack([F.pad(one, (0, 0, longest - one.shape[1], 0)) for one in several])
