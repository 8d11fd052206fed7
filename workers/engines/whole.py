"""How a worker's model is held: whole, or as one shard of it. The rest of a worker is the same for both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from editing import Editor
from editing.files import pretrained
from editing.files.saving import saved_size
from editing.sharding.collectives import Collectives


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What a worker loads and how it edits.

    Attributes:
        model: Folder or Hub id of the model.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        preset: Name of a preset, or ``None`` for the model's own.
        dataset: Format of the edits, where a preset has other modules for some data sets.
        modules: Patterns of the edited modules, or ``None`` for the preset's.
        learning_rate: Or ``None`` for the preset's.
        options: Further fields of :class:`editing.EditorConfig`.
        lookahead: Turns that go through the prefix in one pass; ``None`` leaves it to the worker.
        device_memory: Memory that may be used, as ``6GiB`` or ``auto``; ``None`` keeps the whole model in memory.
        watch_size: Edits in the watched sample of all applied ones.
        seed: Seed of that sample.
    """

    model: str
    device: str = "auto"
    dtype: pretrained.DTypeName = "auto"
    preset: str | None = None
    dataset: str | None = None
    modules: tuple[str, ...] | None = None
    learning_rate: float | None = None
    options: dict[str, Any]
    lookahead: int | None = None
    device_memory: str | None = None
    watch_size: int = 20
    seed: int = 0

    @property
    def editing(self) -> dict[str, Any]:
        """Keywords of :meth:`editing.Editor.of_loaded`."""
        return {**self.settings, **self.options}

    @property
    def settings(self) -> dict[str, Any]:
        """Keywords of :func:`editing.editor.settings`."""
        return {name: getattr(self, name) for name in ("modules", "learning_rate", "preset", "dataset")}


class Engine(Protocol):
    """One copy of a model, or this process's shard of it."""

    def load(self) -> Editor:
        """Load the model and get it ready to be edited."""
        ...

    def num_parameters(self) -> int:
        """Parameters of the whole model, tied ones counted once."""
        ...

    def fingerprint(self) -> str:
        """Tells this base model from others, however it is held; to be asked before the first edit."""
        ...

    def saved_size(self) -> int:
        """Bytes that :meth:`save` writes, nearly."""
        ...

    def save(self, folder: Path) -> None:
        """Write the edited model, whole."""
        ...

    def close(self) -> None:
        """Let go of the model and of the other shards."""
        ...


class WholeEngine:
    """A model in the memory of one process.

    Args:
        spec: What is loaded.
        device: Where it goes.
        collectives: How its replicas work together; ``None`` if there is one.
    """

    def __init__(self, spec: WorkerSpec, device: torch.device, collectives: Collectives | None = None) -> None:
        self._spec, self._device, self._collectives = spec, device, collectives

    def load(self) -> Editor:
        spec = self._spec
        model, tokenizer = pretrained.load(spec.model, device=self._device, dtype=spec.dtype)
        self._editor = Editor.of_loaded(model, tokenizer, spec.model, collectives=self._collectives, **spec.editing)
        return self._editor

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self._editor.model.parameters())

    def fingerprint(self) -> str:
        return pretrained.fingerprint(self._editor.model.named_parameters())

    def saved_size(self) -> int:
        return saved_size(pretrained.local_folder(self._spec.model))

    def save(self, folder: Path) -> None:
        self._editor.collectives.run_on_first(lambda: self._editor.save(folder))

    def close(self) -> None:
        del self._editor
