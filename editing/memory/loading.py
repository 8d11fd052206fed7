"""Load a model within a memory budget. Any model that fits on the disk can be loaded.

configuration --meta device--> skeleton without weights --plan--> weights that stay are read, the others by a LayerStream
"""

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

ChooseModules = Callable[[Decoder], tuple[str, ...]]
"""Gives the patterns of the modules to edit, for a decoder whose weights are not loaded yet."""


@dataclass(frozen=True, slots=True)
class BudgetedModel:
    """A model whose lower layers may be on disk.

    Attributes:
        model: The model. Only what stays in memory has its weights.
        decoder: Runs the model.
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
        """The weights from before the first edit, by module name."""
        return StoredWeights(self.reader, self.dtype)

    def close(self) -> None:
        """Close the files."""
        if isinstance(self.decoder.residency, LayerStream):
            self.decoder.residency.close()
        self.reader.close()
        self.reader.files.close()


class StoredWeights(Mapping[str, Tensor]):
    """Weights of modules by name. Each access reads from disk."""

    def __init__(self, reader: WeightReader, dtype: torch.dtype) -> None:
        self._reader, self._dtype = reader, dtype

    def __getitem__(self, name: str) -> Tensor:
        return self._reader.tensor(f"{name}.weight", self._dtype)

    def __iter__(self) -> Iterator[str]:
        return (name.removesuffix(".weight") for name in self._reader.files.shapes)

    def __len__(self) -> int:
        return len(self._reader.files.shapes)


def plan_within(folder: Path, budget: int, work: Work, *, choose: ChooseModules, dtype: pretrained.DTypeName = "auto") -> MemoryPlan:
    """Where a model's layers would be within a budget. No weight is read.

    Args:
        folder: Folder of the model.
        budget: Bytes: of resident memory of the process on a CPU, else of the device.
        work: What needs memory beside the weights.
        choose: Names the modules that will be edited.
        dtype: As for :func:`editing.files.pretrained.load`.

    Raises:
        InputError: The budget is too small.
        ModelError: The model's configuration cannot be read.
    """
    skeleton = _skeleton(folder, dtype)
    decoder = Decoder(skeleton)
    return make_plan(Footprint.of(decoder, _chosen(decoder, choose), skeleton.dtype), work, budget)


def load_planned(
    folder: Path, plan: MemoryPlan, *, choose: ChooseModules, device: torch.device, dtype: pretrained.DTypeName = "auto", pinned: bool = False
) -> BudgetedModel:
    """Load a causal language model, frozen and in evaluation mode. Layers that are streamed get no weights yet.

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
    return BudgetedModel(skeleton, decoder, reader, precision, plan)


def _chosen(decoder: Decoder, choose: ChooseModules) -> dict[str, nn.Linear]:
    """The modules to edit; none if the model is only measured."""
    patterns = choose(decoder)
    return resolve(decoder, patterns) if patterns else {}


def _skeleton(folder: Path, dtype: pretrained.DTypeName) -> PreTrainedModel:
    config = pretrained.load_config(folder)
    return pretrained.make_skeleton(folder, config, pretrained.resolve_dtype(config, dtype))


def _fill(model: nn.Module, reader: WeightReader, dtype: torch.dtype, device: torch.device, stays: Callable[[str], bool]) -> None:
    """Read the weights that stay in memory, each tied one once."""
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
    """Let the embedding table read only the rows that a batch needs."""
    table, device = decoder.table, decoder.device
    name = next(name for name, module in decoder.model.named_modules() if module is table) + ".weight"
    table.padding_idx = None  # it matters to gradients only, and may be beyond the rows read

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
