"""An editor's lifelong state as one safetensors file: edited weights, their float32 masters and the moments.

Small beside the model: the edited matrices, once or twice, and two vectors per module shape. The prefix, the head and
everything else is the base model's and is not stored.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editing.editor import Editor
from editing.errors import InputError
from editing.normalizer import Moments
from editing.parts import Shape


def save_state(editor: Editor, path: Path) -> None:
    """Write the state of an editor to a file. Of shards, which all call this, one writes for all, and weights are whole."""
    tensors = {f"{kind}.{name}": tensor.cpu() for kind, held in _held(editor).items() for name, tensor in editor.whole(held)}
    counts = {}
    for shape, moments in editor.moments.items():
        key = _key(shape)
        counts[key] = moments.count
        tensors |= {f"mean.{key}": moments.mean, f"sum_of_squares.{key}": moments.sum_of_squares}
    metadata = {"turns": str(editor.turns), "counts": json.dumps(counts)}
    editor.reductions.by_first(
        lambda: save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    )


def load_state(editor: Editor, path: Path) -> None:
    """Put an editor into a stored state, bit for bit.

    Raises:
        InputError: The file is damaged, or belongs to other modules or another precision.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            counts: dict[str, Any] = json.loads(metadata["counts"])
            turns = int(metadata["turns"])
            _check_same(path, editor, {name: s for name, s in slices.items() if name.startswith(("weight.", "master."))})
            held = {kind: {name: editor.parts[name].cut(slices[f"{kind}.{name}"]) for name in names} for kind, names in _held(editor).items()}
            moments = {_shape(key): _moments(slices, key, count, editor.decoder.device) for key, count in counts.items()}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: is damaged or no stored state ({error})") from None
    for kind, targets in _held(editor).items():
        for name, target in targets.items():
            target.copy_(held[kind][name])
    editor.moments, editor.turns = moments, turns


def stored_weights(path: Path) -> dict[str, Tensor]:
    """The edited weights of a stored state by module name, whole."""
    with safe_open(path, "pt") as file:
        return {name.removeprefix("weight."): file.get_tensor(name) for name in file.keys() if name.startswith("weight.")}  # noqa: SIM118


def _held(editor: Editor) -> dict[str, dict[str, Tensor]]:
    """What this worker holds of the tensors that a state stores whole, by kind and module name."""
    return {"weight": editor.weights(), "master": editor.masters}


def _moments(slices: dict[str, Any], key: str, count: int, device: torch.device) -> Moments:
    return Moments(count, slices[f"mean.{key}"][:].to(device), slices[f"sum_of_squares.{key}"][:].to(device))


def _check_same(path: Path, editor: Editor, found: dict[str, Any]) -> None:
    wanted = {f"{kind}.{name}": (editor.parts[name], t.dtype) for kind, held in _held(editor).items() for name, t in held.items()}
    for name in sorted(wanted.keys() ^ found.keys()):
        raise InputError(f"{path}: {'has no' if name in wanted else 'has a'} {name}, so it belongs to other modules or another precision")
    for name, (part, dtype) in wanted.items():
        shape, stored = (part.shape[1], part.shape[0]), found[name][:0].dtype
        if tuple(found[name].get_shape()) != shape or stored != dtype:
            raise InputError(f"{path}: {name} is {tuple(found[name].get_shape())} {stored}; this model's is {shape} {dtype}")


def _key(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"


def _shape(key: str) -> Shape:
    d_in, _, d_out = key.partition("x")
    return int(d_in), int(d_out)
