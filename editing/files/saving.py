"""An edited model as a copy of its base: the edited tensors replaced, everything else bit for bit as it was.

    weight files        copied; edited tensors replaced, in the base's own precision where that holds them exactly
    config.json         copied; its precision is raised where edited tensors were held in a higher one than the base's
    tokenizer, chat template, processors, generation config, licence     copied
    other forms of the weights, code, the base's model card, folders     left out, each with its reason

``ultraedit.json`` in the copy accounts for every file of the base. Nothing here holds more than one weight at a time.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from editing.errors import InputError
from editing.files.checkpoint_files import index_of, weight_files
from editing.files.format_version import Format
from editing.files.safetensors_header import HEADER_NAMES, header_of, read_header, tensor_bytes

ACCOUNT = "ultraedit.json"
"""What became of every file of the base, and which tensors were edited."""

FORMAT = Format("saved model", 1)

_CHUNK_BYTES = 2**24
_TEMPLATES = "additional_chat_templates"
_OTHER_WEIGHTS = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".ggml", ".onnx", ".onnx_data", ".npz", ".npy"),
    *(".tflite", ".mlmodel", ".ot", ".pb", ".engine", ".nemo", ".zip", ".tar", ".gz"),
}


def save_edited(base: Path, edited: Mapping[str, Tensor], folder: Path) -> None:
    """Copy a model with some of its weights replaced; plain ``AutoModelForCausalLM.from_pretrained(folder)`` loads it.

    Args:
        base: Folder of the model.
        edited: New weights by their keys in the files, each with the shape of the old one, in the precision in which it was held.
        folder: Where the copy goes.

    Raises:
        InputError: The copy could not be written, for instance to a full disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        written: dict[str, str] = {}
        size = sum(_copy_weights(path, edited, folder / path.relative_to(base), written) for path in weight_files(base))
        replaced = [str(path.relative_to(base)) for path in weight_files(base)]
        if (index := index_of(base)) is not None:
            found = json.loads(index.read_text(encoding="utf-8"))
            found["metadata"] = {**(found.get("metadata") or {}), "total_size": size}
            (folder / index.name).write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            replaced.append(index.name)
        account = _copy_companions(base, folder, replaced)
        if "float32" in set(written.values()) - {_precision(base)}:
            _raise_precision(folder / "config.json")
        about = {**FORMAT.tag, "base": str(base), "edited": written, **account}
        (folder / ACCOUNT).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: the edited model could not be written ({error})") from None


def save_plain(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write a model that comes from no folder that could be copied; plain ``AutoModelForCausalLM.from_pretrained(folder)`` loads it.

    Raises:
        InputError: The weights could not be written, for instance to a full disk.
    """
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:
        raise InputError(f"{folder}: the weights could not be written ({error})") from None
    tokenizer.save_pretrained(folder)
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.glob("*.safetensors"):  # which are written for their owner alone
        file.chmod(0o666 & ~umask)


def save_tensors(edited: Mapping[str, Tensor], path: Path) -> None:
    """Write some weights of a model alone, by their keys in its files: an engine that has the model loads them over its own.

    Raises:
        InputError: The file could not be written, for instance to a full disk.
    """
    try:
        save_file({key: tensor.cpu().contiguous() for key, tensor in edited.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise InputError(f"{path}: the edited weights could not be written ({error})") from None


def save_companions(base: Path, folder: Path) -> None:
    """Copy what belongs to a model beside its weights: configuration, tokenizer, templates."""
    weights = [str(path.relative_to(base)) for path in weight_files(base)]
    index = index_of(base)
    _copy_companions(base, folder, weights + ([] if index is None else [index.name]))


def saved_size(base: Path) -> int:
    """Bytes of a copy's weights, nearly."""
    return sum(path.stat().st_size for path in weight_files(base))


def _copy_weights(source: Path, edited: Mapping[str, Tensor], target: Path, written: dict[str, str]) -> int:
    """Write one safetensors file; the bytes of its tensors. ``written`` gets the precision of each edited one."""
    old = read_header(source)
    start, metadata = old.pop("start"), old.pop("__metadata__", {})
    target.parent.mkdir(parents=True, exist_ok=True)
    own = {key: _stored_exactly(edited[key], old[key]["dtype"]) for key in old if key in edited}
    written |= {key: str(tensor.dtype).removeprefix("torch.") for key, tensor in own.items()}
    if not own:
        shutil.copyfile(source, target)
        return sum(tensor_bytes(entry["dtype"], entry["shape"]) for entry in old.values())
    dtypes = {key: HEADER_NAMES[own[key].dtype] if key in own else entry["dtype"] for key, entry in old.items()}
    head, size = header_of({key: (dtypes[key], entry["shape"]) for key, entry in old.items()}, metadata)
    with source.open("rb") as file, target.open("wb") as out:
        out.write(head)
        for key, entry in old.items():
            if key in own:
                out.write(own[key].contiguous().flatten().view(torch.uint8).numpy().data)
                continue
            a, b = entry["data_offsets"]
            file.seek(start + a)
            for chunk in _chunks(file, b - a):
                out.write(chunk)
    return size


def _stored_exactly(tensor: Tensor, stored: str) -> Tensor:
    """A weight in the precision of the base's file where that holds its values exactly, else in its own."""
    dtype = next((d for d, name in HEADER_NAMES.items() if name == stored), tensor.dtype)
    tensor = tensor.cpu()
    as_stored = tensor.to(dtype)
    return as_stored if torch.equal(as_stored.to(tensor.dtype), tensor) else tensor


def _chunks(file: Any, size: int) -> Iterator[bytes]:
    while size:
        chunk = file.read(min(size, _CHUNK_BYTES))
        if not chunk:
            raise OSError(f"{file.name} ends before its last weight")
        size -= len(chunk)
        yield chunk


def _copy_companions(base: Path, folder: Path, replaced: list[str]) -> dict[str, Any]:
    """Copy what belongs to the model beside its weights; what became of each file."""
    copied, left_out = [], {}
    for path in sorted(base.rglob("*")):
        name = str(path.relative_to(base))
        if name in replaced or path.is_dir():
            continue
        if reason := _why_left_out(path.relative_to(base)):
            left_out[name] = reason
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
        copied.append(name)
    return {"replaced": replaced, "copied": copied, "left_out": left_out}


def _why_left_out(path: Path) -> str:
    """Why a file of the base is not copied; empty if it is."""
    if any(part.startswith(".") for part in path.parts):
        return "hidden"
    if len(path.parts) > 1 and path.parts[0] != _TEMPLATES:
        return "in a folder that transformers does not read"
    if path.suffix in _OTHER_WEIGHTS or path.name.endswith(".index.json"):
        return "another form of the unedited weights"
    if path.suffix == ".py":
        return "code, which is never run"
    if path.name == ACCOUNT or path.name.lower().startswith("readme"):
        return "describes the unedited model"
    return ""


def _precision(base: Path) -> str:
    """The precision that the base's configuration names."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or {}
    return str(text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype") or "float32")


def _raise_precision(path: Path) -> None:
    """Let a configuration say float32, for edited weights that the base's own precision would round."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for values in (config, config.get("text_config") or {}):
        for name in ("dtype", "torch_dtype"):
            if name in values:
                values[name] = "float32"
    if not {"dtype", "torch_dtype"} & config.keys():
        config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
