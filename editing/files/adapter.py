"""A LoRA adapter as ``peft`` and serving engines load it: the total shift of every edited module as two thin factors.

    adapter_model.safetensors    base_model.model.MODULE.lora_A.weight (r, d_in), .lora_B.weight (d_out, r), float32
    adapter_config.json          r = lora_alpha, so that an engine scales by 1; the modules by their exact names

All modules have one rank, the largest: some engines read no pattern of ranks. Factors of a smaller rank are filled up with zeros.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from editing.errors import InputError
from editing.files.checkpoint_files import ADAPTER
from editing.low_rank import LowRank, factor, rounding
from editing.sharding.shards import LinearShard

logger = logging.getLogger("ultraedit")

WEIGHTS, CONFIG = ADAPTER, "adapter_config.json"

_PREFIX = "base_model.model."


def total_shifts(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], linears: Mapping[str, LinearShard], *, num_turns: int, rank: int | None = None
) -> dict[str, LowRank]:
    """The shift of each module between two states of a model as thin factors.

    Args:
        before: Whole weights by module name, as they are stored.
        after: The same later; in float32 what rounding has left in them is no part of the shift.
        linears: The modules by name.
        num_turns: Turns between the two.
        rank: Largest rank; ``None`` for the one at which nothing but rounding is lost.
    """
    found = {}
    for name, weight in after.items():
        noise = rounding(weight, num_turns) if weight.dtype == torch.float32 else 0.0
        found[name] = factor(linears[name].turned(weight.float() - before[name].float()), rank=rank, tolerance=noise)
    large = [name for name, shift in found.items() if shift.rank * sum(after[name].shape) > after[name].numel()]
    if large:
        told = "adapter: in %d of %d modules the factors are larger than the matrix, first %s at rank %d; a smaller rank or a checkpoint takes less"
        logger.warning(told, len(large), len(found), large[0], found[large[0]].rank)
    return found


def write_adapter(folder: Path, shifts: Mapping[str, LowRank], linears: Mapping[str, LinearShard], *, base: str) -> int:
    """Write an adapter.

    Args:
        folder: Where it goes; made if missing.
        shifts: Total shift of each edited module, by module name.
        linears: These modules by name. The factors are the same whichever way round a weight is stored; who merges them has to know.
        base: Folder or Hub id of the base model.

    Returns:
        The adapter's rank.

    Raises:
        InputError: It could not be written, for instance to a full disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rank = max(shift.rank for shift in shifts.values())
    tensors: dict[str, Tensor] = {}
    for name, shift in shifts.items():
        padded = shift.padded(rank)
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = padded.right.cpu().contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = padded.left.cpu().contiguous()
    try:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise InputError(f"{folder}: the adapter could not be written ({error})") from None
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(shifts),
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": any(linears[name].transposed for name in shifts),
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return rank


def read_adapter(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors ``B (d_out, r)`` and ``A (r, d_in)`` of an adapter that :func:`write_adapter` wrote, by module name.

    Raises:
        InputError: It is damaged.
    """
    try:
        tensors = load_file(folder / WEIGHTS)
        names = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["target_modules"]
        return {name: (tensors[f"{_PREFIX}{name}.lora_B.weight"], tensors[f"{_PREFIX}{name}.lora_A.weight"]) for name in names}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: is no whole adapter ({type(error).__name__}: {error}); export it again") from None
