"""The weights of a model's files, by the parameter names of the model in memory: a weight, or an unread slice of it."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from editing.errors import ModelError
from editing.files.checkpoint_files import weight_files
from editing.files.safetensors_header import HEADER_NAMES, read_header


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a weight lies on disk.

    Attributes:
        path: Its file.
        offset: Its first byte.
        shape: Its shape.
        dtype: Precision in which it is stored.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class WeightFiles:
    """Weights on disk, by the parameter names of a model in memory, which files of older versions do not use.

    Args:
        folder: Folder of the model.
        model: The model, whole and not yet sharded; it may lie on the meta device.

    Attributes:
        shapes: Shape of every parameter, whole; of tied ones the first.

    Raises:
        ModelError: A weight is missing, has another shape, or is stored in a form that is not the model's own.
    """

    def __init__(self, folder: Path, model: PreTrainedModel) -> None:
        self.folder = folder
        self.shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self._stack = ExitStack()
        self._tied = _tied_names(model)
        self._places: dict[str, tuple[Any, str]] = {}
        self._headers: dict[int, tuple[Path, dict[str, Any]]] = {}
        rename = _renaming(model)
        for path in weight_files(folder):
            file = self._stack.enter_context(safe_open(path, "pt"))
            self._headers[id(file)] = path, read_header(path)
            for key in file.keys():  # noqa: SIM118  # no mapping
                name = rename(key)
                if name is None:
                    raise ModelError(
                        f"{path}: {key} is stored in another form than it has in memory, so it cannot be read piece by piece; "
                        f"edit this model whole, without --shards and --device-memory"
                    )
                self._places.setdefault(self._tied.get(name, name), (file, key))
        self._check()

    def __enter__(self) -> "WeightFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self._stack.close()

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, tied ones counted once."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    def key(self, name: str) -> str:
        """A parameter's name in the files."""
        return self._places[self._tied.get(name, name)][1]

    def slice(self, name: str) -> Any:
        """A parameter, not yet read: index it as a tensor."""
        file, key = self._places[self._tied.get(name, name)]
        return file.get_slice(key)

    def stored(self, name: str) -> Stored:
        """Where a parameter lies.

        Raises:
            ModelError: It is stored in a form that is not floating point.
        """
        file, key = self._places[self._tied.get(name, name)]
        path, header = self._headers[id(file)]
        dtype = next((d for d, stored in HEADER_NAMES.items() if stored == header[key]["dtype"]), None)
        if dtype is None:
            raise ModelError(f"{path}: {key} is stored as {header[key]['dtype']}; weights must be float32, bfloat16 or float16 to be edited")
        return Stored(path, header["start"] + header[key]["data_offsets"][0], tuple(header[key]["shape"]), dtype)

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters, one by one, in the model's order and the files' precision. Mapped: only what is looked at is read."""
        for name in self.shapes:
            file, key = self._places[name]
            yield name, file.get_tensor(key)

    def _check(self) -> None:
        found = {name: tuple(self.slice(name).get_shape()) for name in self.shapes if name in self._places}
        wrong = [name for name, shape in self.shapes.items() if found.get(name) != shape]
        if wrong:
            raise ModelError(missing_weights(self.folder, sorted(wrong)))


def missing_weights(name: object, wrong: list[str]) -> str:
    """One line about weights that are not in a model's files as its configuration wants them."""
    return f"{name}: {len(wrong)} weights are missing or of a wrong shape in its safetensors files, the first is {wrong[0]}"


def _renaming(model: PreTrainedModel) -> Callable[[str], str | None]:
    """From a key in a file to a parameter's name, by the rules with which transformers itself loads the model.

    ``None`` for what is stored in another form than it has in memory, such as experts that are merged into one tensor.
    """
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    known = dict.fromkeys(model.state_dict(), True)

    def rename(key: str) -> str | None:
        name: str
        name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, known)
        return None if converted is not None else name

    return rename


def keys_in_files(folder: Path, model: PreTrainedModel, names: Collection[str]) -> dict[str, str]:
    """Keys in a folder's files of some parameters of its model, by name.

    Raises:
        ModelError: One is stored in another form than it has in memory.
    """
    rename = _renaming(model)
    keys = {name: key for path in weight_files(folder) for key in read_header(path) if (name := rename(key)) in names and name is not None}
    if missing := sorted(set(names) - keys.keys()):
        raise ModelError(f"{folder}: {missing[0]} is stored in another form than it has in memory, so no edited copy can be made; use --save delta")
    return keys


def _tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Names of tied parameters, each with the name of the one that stands for it."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}
    return {name: other for name, other in names.items() if name != other}
