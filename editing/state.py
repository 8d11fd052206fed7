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

from editing.editor import Editor, Shape
from editing.errors import InputError
from editing.normalizer import Moments


def save_state(editor: Editor, path: Path) -> None:
    """Write the state of an editor to a file."""
    tensors = {f"weight.{name}": module.weight.data for name, module in editor.modules.items()}
    tensors |= {f"master.{name}": master for name, master in editor.masters.items()}
    counts = {}
    for shape, moments in editor.moments.items():
        key = _key(shape)
        counts[key] = moments.count
        tensors |= {f"mean.{key}": moments.mean, f"sum_of_squares.{key}": moments.sum_of_squares}
    metadata = {"turns": str(editor.turns), "counts": json.dumps(counts)}
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)


def load_state(editor: Editor, path: Path) -> None:
    """Put an editor into a stored state, bit for bit.

    Raises:
        InputError: The file is damaged, or belongs to other modules or another precision.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        counts: dict[str, Any] = json.loads(metadata["counts"])
        turns = int(metadata["turns"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: is damaged or no stored state ({error})") from None
    wanted = {f"weight.{name}": module.weight for name, module in editor.modules.items()}
    wanted |= {f"master.{name}": master for name, master in editor.masters.items()}
    _check_same(path, wanted, {name: t for name, t in tensors.items() if name.startswith(("weight.", "master."))})
    for name, target in wanted.items():
        target.data.copy_(tensors[name])
    editor.moments = {_shape(key): _moments(tensors, key, count, editor.decoder.device) for key, count in counts.items()}
    editor.turns = turns


def _moments(tensors: dict[str, Tensor], key: str, count: int, device: torch.device) -> Moments:
    return Moments(count, tensors[f"mean.{key}"].to(device), tensors[f"sum_of_squares.{key}"].to(device))


def _check_same(path: Path, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    for name in sorted(wanted.keys() ^ found.keys()):
        raise InputError(f"{path}: {'has no' if name in wanted else 'has a'} {name}, so it belongs to other modules or another precision")
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape or tensor.dtype != found[name].dtype:
            raise InputError(
                f"{path}: {name} is {tuple(found[name].shape)} {found[name].dtype}; this model's is {tuple(tensor.shape)} {tensor.dtype}"
            )


def _key(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"


def _shape(key: str) -> Shape:
    d_in, _, d_out = key.partition("x")
    return int(d_in), int(d_out)
