"""A model within a memory budget: layers that do not fit are read from disk when a pass needs them."""

from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from editing import Editor
from editing.config import DEFAULT_BATCH_TOKENS, EditorConfig, MethodOptions
from editing.files import pretrained
from editing.files.checkpoint_files import weight_files
from editing.files.saving import save_edited, saved_size
from editing.memory import loading as budgeted
from editing.memory.budget import Footprint, MemoryPlan, Work, free_memory, make_plan, parse_size, resident_bytes
from editing.memory.calibration import Forecast, Rates, outlook
from editing.memory.heap import return_large_blocks
from editing.model.decoder import Decoder
from editing.model.framing import has_template, resolve_framings
from editing.model.modules import resolve
from editing.presets.resolve import resolve_settings
from workers.engines.engine import Engine
from workers.protocol import USUAL_EVALUATION, WorkerSpec

_LIBRARIES_LOADED_LATER = 128 * 2**20
"""Bytes for libraries that a run loads later, such as MLflow and matplotlib."""

_CUDA_CONTEXT = 512 * 2**20


class StreamedEngine(Engine):
    """One process's model, of which only a part is in memory.

    Args:
        spec: What is loaded; it has a ``device_memory``.
        device: Where it computes.
    """

    def __init__(self, spec: WorkerSpec, device: torch.device) -> None:
        self._spec, self._device = spec, device
        self._num_edits: int | None = None
        self._opened = ExitStack()
        self._folder = pretrained.local_folder(spec.model)
        self._options = {name: spec.options.get(name, getattr(EditorConfig, name)) for name in ("batch_tokens", "edits_per_turn")}

    @cached_property
    def plan(self) -> MemoryPlan:
        """Where the layers will be. Raises :class:`editing.InputError` if the budget is too small, before anything is loaded."""
        method = self._method  # loads the tokenizer: a large one takes hundreds of megabytes, which the budget has to count
        budget = _budget(self._spec.device_memory or "auto", self._device)
        return make_plan(self._footprint, Work(**self._options, process=process_bytes(self._device), method=method), budget)

    @property
    def lookahead(self) -> int:
        return self._spec.lookahead or self._forecast.lookahead

    @property
    def edits_at_a_time(self) -> int:
        """As many as a window holds, since a pass reads all streamed layers."""
        return max(USUAL_EVALUATION, self.lookahead * int(self._options["edits_per_turn"]))

    def outlook(self, num_edits: int | None) -> list[str]:
        self._num_edits = num_edits
        lines = outlook(self._footprint, self.plan, self._forecast, where=str(self._folder), pinned=self._pinned, lookahead=self.lookahead)
        return [f"{topic:<9}  {text}" for topic, text in lines]

    def load(self) -> Editor:
        spec, plan = self._spec, self.plan
        if self._device.type == "cpu":
            return_large_blocks()
        self._loaded = budgeted.load_planned(self._folder, plan, choose=self._choose, device=self._device, dtype=spec.dtype, pinned=self._pinned)
        loaded = self._loaded
        self._opened.callback(loaded.close)
        options = {**spec.editing, "masters": plan.masters and spec.options.get("masters", True)}
        self._editor = Editor.of_loaded(loaded.model, self._tokenizer, spec.model, decoder=loaded.decoder, originals=loaded.originals, **options)
        return self._editor

    def num_parameters(self) -> int:
        return self._loaded.reader.files.num_parameters

    def fingerprint(self) -> str:
        return pretrained.fingerprint_of(self._loaded.reader.samples(self._loaded.dtype))

    def saved_size(self) -> int:
        return saved_size(self._folder)

    def save(self, folder: Path) -> None:
        editor, files = self._editor, self._loaded.reader.files
        edited = {files.key(f"{name}.weight"): weight for name, weight in editor.weights.items()}
        self._loaded.reader.check_in_place()
        save_edited(files.folder, edited, folder)
        self._loaded.reader.check_in_place()

    def close(self) -> None:
        self._opened.close()

    @cached_property
    def _forecast(self) -> Forecast:
        rates = Rates.measure(self._footprint, self._skeleton[1], self._device, weight_files(self._folder)[0])
        forms = len(self._method.framings)
        return Forecast.of(self._footprint, self.plan, rates, self._options["edits_per_turn"], forms=forms, num_edits=self._num_edits)

    @cached_property
    def _footprint(self) -> Footprint:
        decoder, dtype = self._skeleton
        return Footprint.of(decoder, resolve(decoder, self._choose(decoder)), dtype)

    @cached_property
    def _skeleton(self) -> tuple[Decoder, torch.dtype]:
        config = pretrained.load_config(self._folder)
        dtype = pretrained.resolve_dtype(config, self._spec.dtype)
        return Decoder(pretrained.make_skeleton(self._folder, config, dtype)), dtype

    @cached_property
    def _tokenizer(self) -> Any:
        return pretrained.load_tokenizer(self._folder)

    @property
    def _method(self) -> MethodOptions:
        """The method's options as the editor will have them."""
        options = {**self._settings(self._skeleton[0])[2], **self._spec.options}
        method = MethodOptions(**{name: value for name, value in options.items() if name in MethodOptions.names()})
        return replace(method, framings=resolve_framings(method.framings, chats=has_template(self._tokenizer)))

    @property
    def _pinned(self) -> bool:
        """With a GPU and room in the CPU's memory each layer is read from disk once."""
        return self._device.type == "cuda" and self.plan.read_bytes < free_memory(torch.device("cpu")) // 2

    def _choose(self, decoder: Decoder) -> tuple[str, ...]:
        return (*self._settings(decoder)[0], *self._method.subject_modules)

    def _settings(self, decoder: Decoder) -> tuple[tuple[str, ...], float | None, dict[str, Any]]:
        return resolve_settings(decoder, self._spec.model, **self._spec.settings)


def load_to_measure(name: str, device_memory: str, device: torch.device, dtype: pretrained.DTypeName) -> tuple[Any, Decoder]:
    """Tokenizer and decoder of a model that is measured only, within a budget.

    Raises:
        UltraEditError: The budget is too small, or the model cannot be loaded.
    """
    folder = pretrained.local_folder(name)
    tokenizer = pretrained.load_tokenizer(folder)
    work = Work(batch_tokens=DEFAULT_BATCH_TOKENS, edits_per_turn=EditorConfig.edits_per_turn, process=process_bytes(device))
    plan = budgeted.plan_within(folder, _budget(device_memory, device), work, choose=lambda _: (), dtype=dtype)
    if device.type == "cpu":
        return_large_blocks()
    return tokenizer, budgeted.load_planned(folder, plan, choose=lambda _: (), device=device, dtype=dtype).decoder


def _budget(device_memory: str, device: torch.device) -> int:
    limit = parse_size(device_memory)
    return free_memory(device) if limit is None else limit


def process_bytes(device: torch.device) -> int:
    """Memory of a process on a device without a model: of a GPU its context, else all libraries."""
    return _CUDA_CONTEXT if device.type == "cuda" else resident_bytes() + _LIBRARIES_LOADED_LATER
