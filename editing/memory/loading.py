"""Load a model within a memory budget: any model that fits on the disk."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from editing.files import pretrained
from editing.files.reader import WeightReader
from editing.files.weights import WeightFiles
from editing.memory.budget import Footprint, MemoryPlan, Work, make_plan
from editing.memory.streaming import LayerStream
from editing.model.decoder import Decoder
from editing.model.modules import resolve

Choose = Callable[[Decoder], tuple[str, ...]]
"""Patterns of the modules to edit, given a decoder whose weights are not there yet."""


@dataclass(frozen=True, slots=True)
class Budgeted:
    """A model whose lower layers may lie on disk.

    Attributes:
        model: The model; only what stays has its weights.
        decoder: Runs it.
        reader: Reads its weights.
        dtype: Precision of the weights in memory.
        plan: Where its layers are.
    """

    model: PreTrainedModel
    decoder: Decoder
    reader: WeightReader
    dtype: torch.dtype
    plan: MemoryPlan

    @property
    def originals(self) -> "StoredWeights":
        """The modules' weights as they were before the first edit, by module name."""
        return StoredWeights(self.reader, self.dtype)

    def close(self) -> None:
        """Let go of the files."""
        if isinstance(self.decoder.residency, LayerStream):
            self.decoder.residency.close()
        self.reader.close()
        self.reader.files.close()


class StoredWeights(Mapping[str, Tensor]):
    """Weights of modules by name, read from disk each time they are asked for."""

    def __init__(self, reader: WeightReader, dtype: torch.dtype) -> None:
        self._reader, self._dtype = reader, dtype

    def __getitem__(self, name: str) -> Tensor:
        return self._reader.tensor(f"{name}.weight", self._dtype)

    def __iter__(self) -> Iterator[str]:
        return (name.removesuffix(".weight") for name in self._reader.files.shapes)

    def __len__(self) -> int:
        return len(self._reader.files.shapes)


def plan_within(folder: Path, budget: int, work: Work, *, choose: Choose, dtype: pretrained.DTypeName = "auto") -> MemoryPlan:
    """Where a model's layers would be within a budget; nothing of its weights is read.

    Args:
        folder: Folder of the model.
        budget: Bytes: resident memory of the process on a CPU, else the device's.
        work: What needs memory beside the weights.
        choose: Says which modules will be edited.
        dtype: As for :func:`editing.files.pretrained.load`.

    Raises:
        InputError: The budget is too small.
        ModelError: The model's configuration cannot be read.
    """
    skeleton = _skeleton(folder, dtype)
    decoder = Decoder(skeleton)
    return make_plan(Footprint.of(decoder, _chosen(decoder, choose), skeleton.dtype), work, budget)


def load_planned(
    folder: Path, plan: MemoryPlan, *, choose: Choose, device: torch.device, dtype: pretrained.DTypeName = "auto", pinned: bool = False
) -> Budgeted:
    """Load a causal language model, frozen and in evaluation mode, as far as it stays in memory.

    Args:
        folder: Folder of the model.
        plan: Which layers stay.
        choose: As for :func:`plan_within`.
        device: Where the layers run.
        dtype: As for :func:`plan_within`.
        pinned: As for :class:`~editing.memory.streaming.LayerStream`.

    Raises:
        ModelError: The model cannot be loaded.
    """
    skeleton = _skeleton(folder, dtype)
    files = WeightFiles(folder, skeleton)
    reader = WeightReader(files)
    decoder, precision = Decoder(skeleton), skeleton.dtype
    fixed = {f"{name}.weight" for name in _chosen(decoder, choose)}
    if plan.streamed:
        decoder.residency = LayerStream(
            decoder.layers,
            decoder.layers_path,
            reader,
            streamed=plan.streamed,
            fixed=fixed,
            dtype=precision,
            device=device,
            hidden_limit=plan.hidden_limit,
            pinned=pinned,
        )
    lower = tuple(f"{decoder.layers_path}.{i}." for i in range(plan.streamed))
    _fill(skeleton, reader, precision, device, lambda name: name in fixed or not name.startswith(lower))
    if not decoder.is_tied:
        _leave_on_disk(decoder, reader, precision)
    _move_buffers(skeleton, device)
    skeleton.generation_config = pretrained.load_generation_config(folder, skeleton)
    pretrained.check_causal(folder, skeleton, lambda input_ids: _first_segment(decoder, input_ids))
    return Budgeted(skeleton, decoder, reader, precision, plan)


def _chosen(decoder: Decoder, choose: Choose) -> dict[str, nn.Linear]:
    """The modules to edit; none for a model that is measured only."""
    patterns = choose(decoder)
    return resolve(decoder, patterns) if patterns else {}


def _skeleton(folder: Path, dtype: pretrained.DTypeName) -> PreTrainedModel:
    config = pretrained.load_config(folder)
    return pretrained.make_skeleton(folder, config, pretrained.resolve_dtype(config, dtype))


def _fill(model: nn.Module, reader: WeightReader, dtype: torch.dtype, device: torch.device, stays: Callable[[str], bool]) -> None:
    """Read the weights that stay; tied ones once."""
    table = model.get_input_embeddings().weight  # type: ignore[operator]
    tied = sum(p is table for _, p in model.named_parameters(remove_duplicate=False)) > 1
    read: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            name = f"{prefix}.{leaf}"
            if parameter is None or not stays(name) or (parameter is table and not tied):
                continue
            if id(parameter) not in read:
                read[id(parameter)] = nn.Parameter(reader.tensor(name, dtype).to(device), requires_grad=False)
            module._parameters[leaf] = read[id(parameter)]


def _leave_on_disk(decoder: Decoder, reader: WeightReader, dtype: torch.dtype) -> None:
    """Let the embedding table read the rows that a batch asks for, and no others."""
    table, device = decoder.table, decoder.device
    name = next(name for name, module in decoder.model.named_modules() if module is table) + ".weight"
    table.padding_idx = None  # it only matters to a gradient, and may lie beyond the rows read

    def read_rows(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        ids, places = inputs[0].unique(return_inverse=True)
        module._parameters["weight"] = nn.Parameter(reader.rows(name, ids.cpu(), dtype).to(device), requires_grad=False)
        return (places,)

    table.register_forward_pre_hook(read_rows)


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


@torch.no_grad()
def _first_segment(decoder: Decoder, input_ids: Tensor) -> Tensor:
    with closing(decoder.residency.segments(0, decoder.num_layers)) as segments:
        return decoder.span(input_ids.to(decoder.device), None, 0, next(segments).stop)
