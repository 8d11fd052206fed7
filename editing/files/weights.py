"""A model folder's safetensors files: read a weight or a slice of it by its name in memory, and copy them with some replaced.

Nothing here holds more than one weight at a time.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from editing.errors import InputError, ModelError

INDEX = "model.safetensors.index.json"

_CHUNK_BYTES = 2**24

HEADER_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Names of floating-point types in a safetensors header."""


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


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a folder's model.

    Raises:
        ModelError: The index is damaged, or there are no weights.
    """
    index = folder / INDEX
    try:
        indexed = json.loads(index.read_text())["weight_map"].values() if index.is_file() else ()
        names = sorted({str(name) for name in indexed}) or sorted(f.name for f in folder.glob("*.safetensors"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index}: is not a safetensors index") from None
    if not names:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise ModelError(f"{folder}: has no safetensors weights" + ("; its pickle files are not opened, convert them first" if pickled else ""))
    return [folder / name for name in names]


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
        rename = _renaming(folder, model)
        for path in weight_files(folder):
            file = self._stack.enter_context(safe_open(path, "pt"))
            self._headers[id(file)] = path, _header(path)
            for key in file.keys():  # noqa: SIM118  # no mapping
                name = rename(key)
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


def save_edited(base: Path, edited: Mapping[str, Tensor], folder: Path, *, dtype: torch.dtype) -> None:
    """Copy a model with some of its weights replaced; plain ``AutoModelForCausalLM.from_pretrained(folder)`` loads it.

    Args:
        base: Folder of the model.
        edited: New weights by their keys in the files, each with the shape of the old one.
        folder: Where the copy goes.
        dtype: Precision of the copy's floating-point weights.

    Raises:
        InputError: The weights could not be written, for instance to a full disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        size = sum(_copy_file(path, edited, folder / path.name, dtype) for path in weight_files(base))
        if (base / INDEX).is_file():
            index = json.loads((base / INDEX).read_text())
            index["metadata"] = {**index.get("metadata", {}), "total_size": size}
            (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        if (base / "generation_config.json").is_file():
            shutil.copyfile(base / "generation_config.json", folder / "generation_config.json")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: the weights could not be written ({error})") from None
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    config.dtype = dtype
    config.save_pretrained(folder)


def header_of(tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """The beginning of a safetensors file: the length of a JSON header, and the header.

    Args:
        tensors: Precision as the header calls it, and shape, by key, in the order in which they lie end to end.
        metadata: Texts that go with them.

    Returns:
        These bytes, and how many the tensors will have.
    """
    header: dict[str, Any] = {"__metadata__": {**metadata, "format": "pt"}}
    offset = 0
    for key, (dtype, shape) in tensors.items():
        size = _bytes(dtype, shape)
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offset


def _copy_file(source: Path, edited: Mapping[str, Tensor], target: Path, dtype: torch.dtype) -> int:
    """Write one safetensors file, each tensor copied a chunk at a time; the bytes of the tensors."""
    old = _header(source)
    start, metadata = old.pop("start"), old.pop("__metadata__", {})
    dtypes = {key: HEADER_NAMES[dtype] if e["dtype"] in HEADER_NAMES.values() else e["dtype"] for key, e in old.items()}
    head, size = header_of({key: (dtypes[key], entry["shape"]) for key, entry in old.items()}, metadata)
    with source.open("rb") as file, target.open("wb") as out:
        out.write(head)
        for key, entry in old.items():
            if key in edited:
                out.write(edited[key].cpu().to(dtype).contiguous().flatten().view(torch.uint8).numpy().data)
                continue
            a, b = entry["data_offsets"]
            file.seek(start + a)
            for chunk in _chunks(file, b - a):
                out.write(chunk if dtypes[key] == entry["dtype"] else _converted(chunk, entry["dtype"], dtype))
    return size


def _chunks(file: Any, size: int) -> Iterator[bytes]:
    while size:
        chunk = file.read(min(size, _CHUNK_BYTES))
        if not chunk:
            raise OSError(f"{file.name} ends before its last weight")
        size -= len(chunk)
        yield chunk


def _converted(chunk: bytes, stored: str, dtype: torch.dtype) -> Any:
    old = next(d for d, name in HEADER_NAMES.items() if name == stored)
    return torch.frombuffer(bytearray(chunk), dtype=old).to(dtype).view(torch.uint8).numpy().data


def _header(path: Path) -> dict[str, Any]:
    """A safetensors file's header, with ``start``: where its data begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return {**json.loads(file.read(length)), "start": 8 + length}


def _bytes(dtype: str, shape: Sequence[int]) -> int:
    bits = {"BOOL": 8, "BF16": 16}.get(dtype) or int(dtype.lstrip("IUF").split("_")[0])
    return torch.Size(shape).numel() * bits // 8


def _renaming(folder: Path, model: PreTrainedModel) -> Callable[[str], str]:
    """From a key in a file to a parameter's name, by the rules with which transformers itself loads the model."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    known = dict.fromkeys(model.state_dict(), True)

    def rename(key: str) -> str:
        name: str
        name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, known)
        if converted is not None:
            raise ModelError(f"{folder}: {key} is stored in another form than the model has it in memory; save the model anew to shard it")
        return name

    return rename


def _tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Names of tied parameters, each with the name of the one that stands for it."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}
    return {name: other for name, other in names.items() if name != other}
