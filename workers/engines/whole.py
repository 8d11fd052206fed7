"""A model that is whole in the memory of one process, alone or as one of several replicas."""

from pathlib import Path

import torch

from editing import Editor
from editing.files import pretrained
from editing.files.saving import saved_size
from editing.sharding.collectives import Collectives
from workers.engines.engine import InMemoryEngine
from workers.protocol import WorkerSpec


class WholeEngine(InMemoryEngine):
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
