"""The weights of the edited modules: as they are, as they were before the first edit, and in float32 where the model's are not.

    weight     (d_out, d_in), or this worker's slice of it, in the model's dtype; the model computes with it. Of a Conv1D it is (d_in, d_out)
    master     the same in float32, if the model's dtype is lower: a small shift would be lost in bfloat16 alone
    original   the same as before the first edit, in the model's dtype, on the CPU or in the model's files

A shift is added to the master, which is then rounded into the weight. Without a master it is added to a float32 copy.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from editing.method.shift import Shift
from editing.sharding.collectives import Collectives, frobenius_norms
from editing.sharding.shards import shard_of


class EditedWeights(Mapping[str, Tensor]):
    """The weights by module name, as far as this worker holds them.

    Args:
        modules: The edited modules by name.
        collectives: How the shards' slices and decisions become whole. All workers call the same methods in the same order.
        masters: Whether to keep float32 copies of weights of lower precision.
        originals: The weights from before the first edit, by module name; by default they are copied now.

    Attributes:
        shards: What this worker holds of each module.
        masters: The float32 copies, by module name; empty if there are none.
        originals: The weights from before the first edit.
    """

    def __init__(
        self, modules: Mapping[str, nn.Linear], collectives: Collectives, *, masters: bool = True, originals: Mapping[str, Tensor] | None = None
    ) -> None:
        self._modules, self._collectives = dict(modules), collectives
        self.shards = {name: shard_of(module) for name, module in self._modules.items()}
        self.originals = originals or {name: weight.detach().to("cpu", copy=True) for name, weight in self.items()}
        self._original_norms = {name: norm or 1.0 for name, norm in self._norms((name, self.originals[name]) for name in self).items()}
        self.masters = {name: weight.float() for name, weight in self.items() if masters and weight.dtype != torch.float32}

    def __getitem__(self, name: str) -> Tensor:
        return self._modules[name].weight.data

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model's weights."""
        return next(iter(self.values())).dtype

    def add(self, shifts: Mapping[str, Shift]) -> None:
        """Add shifts in place, by module name."""
        for name, shift in shifts.items():
            weight, exact = self[name], self._exact(name)
            shift.add_to(self.shards[name].turned(exact))
            if exact is not weight:
                weight.copy_(exact)

    def would_change(self, shifts: Mapping[str, Shift]) -> bool:
        """Whether any weight would differ after :meth:`add`, once it is rounded; the same answer on all workers."""
        changes = any(self._is_changed(name, shift) for name, shift in shifts.items())
        return bool(self._collectives.all_reduce_sum(torch.tensor(float(changes))) > 0)

    def in_place(self) -> list[Tensor]:
        """The tensors that :meth:`add` changes."""
        return [*self.values(), *self.masters.values()]

    def restore(self) -> None:
        """Go back to the weights from before the first edit."""
        for name, weight in self.items():
            weight.copy_(self.originals[name])
            if name in self.masters:
                self.masters[name].copy_(self.originals[name])

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Within this context the model has its weights from before the first edit."""
        edited = dict(self)
        try:
            for name, module in self._modules.items():
                module.weight.data = self.originals[name].to(module.weight.device)
            yield
        finally:
            for name, module in self._modules.items():
                module.weight.data = edited[name]

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Name and whole weight of each module, one by one, gathered from all shards."""
        return self._gathered(self)

    def whole_masters(self) -> Iterator[tuple[str, Tensor]]:
        """Name and whole master of each module that has one, one by one, gathered from all shards."""
        return self._gathered(self.masters)

    def digests(self) -> dict[str, str]:
        """SHA-256 of each module's whole weight, as stored in memory."""
        return {name: _digest(weight) for name, weight in self.whole()}

    def growth(self) -> dict[str, float]:
        """By module, the growth of the weight's Frobenius norm since before the first edit, as a share of it."""
        norms = self._norms((name, self._exact(name)) for name in self)
        return {name: norms[name] / self._original_norms[name] - 1 for name in self}

    def norms(self) -> dict[str, float]:
        """By module, the Frobenius norm of the weight from before the first edit."""
        return dict(self._original_norms)

    def _is_changed(self, name: str, shift: Shift) -> bool:
        turned = self.shards[name].turned
        return shift.changes(turned(self._exact(name)), turned(self[name]))

    def _exact(self, name: str) -> Tensor:
        """A weight in float32: its master, itself if it is float32, else a copy."""
        master = self.masters.get(name)
        return self[name].float() if master is None else master

    def _norms(self, held: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
        squared = {name: torch.linalg.vector_norm(tensor, dtype=torch.float32).double().square() for name, tensor in held}
        return frobenius_norms(squared, self.shards, self._collectives)

    def _gathered(self, held: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in held.items():
            yield name, self._collectives.all_gather_weight(tensor, self.shards[name])


def _digest(weight: Tensor) -> str:
    return hashlib.sha256(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data).hexdigest()
