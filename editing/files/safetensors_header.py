"""The beginning of a safetensors file: which tensors it holds, in which precision, and where."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

HEADER_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Names of floating-point types in a safetensors header."""


def read_header(path: Path) -> dict[str, Any]:
    """A safetensors file's header, with ``start``: where its data begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return {**json.loads(file.read(length)), "start": 8 + length}


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
        size = tensor_bytes(dtype, shape)
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offset


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor, its precision as the header calls it."""
    bits = {"BOOL": 8, "BF16": 16}.get(dtype) or int(dtype.lstrip("IUF").split("_")[0])
    return torch.Size(shape).numel() * bits // 8
