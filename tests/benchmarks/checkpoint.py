"""Random checkpoints of real shapes, written weight by weight: a model larger than the memory."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from editing.files import pretrained
from editing.files.safetensors_header import HEADER_NAMES, header_of
from tests.support.paths import PARITY

_TOKENIZER = PARITY / "llama-tiny" / "model"
_FILE_BYTES = 4_000_000_000


def write_random(folder: Path, config: Any, dtype: torch.dtype, *, scale: float = 0.02) -> None:
    """Write a checkpoint with random weights, norms of one, and a small tokenizer."""
    folder.mkdir(parents=True)
    shapes = {name: tuple(p.shape) for name, p in pretrained.make_skeleton(folder, config, dtype).named_parameters()}
    files: list[dict[str, tuple[int, ...]]] = [{}]
    used = 0
    for name, shape in shapes.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        if used and used + size > _FILE_BYTES:
            files.append({})
            used = 0
        files[-1][name] = shape
        used += size
    noise = (torch.randn(2**24) * scale).to(dtype).repeat(2)
    weight_map = {}
    for number, held in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        _write(folder / name, held, noise, dtype)
        weight_map |= dict.fromkeys(held, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(_TOKENIZER / name, folder / name)
    config.architectures = [type(pretrained.make_skeleton(folder, config, dtype)).__name__]
    config.dtype = dtype
    config.save_pretrained(folder)


def _write(path: Path, shapes: dict[str, tuple[int, ...]], noise: torch.Tensor, dtype: torch.dtype) -> None:
    with path.open("wb") as out:
        out.write(header_of({name: (HEADER_NAMES[dtype], shape) for name, shape in shapes.items()}, {})[0])
        period = len(noise) // 2
        for k, shape in enumerate(shapes.values()):
            count, start = torch.Size(shape).numel(), -7919 * k % period
            values = noise[start : start + period] if len(shape) > 1 else torch.ones(count, dtype=dtype)
            while count:  # the same noise again and again, each weight's begun elsewhere
                part = values[:count]
                out.write(part.view(torch.uint8).numpy().data)
                count -= len(part)
