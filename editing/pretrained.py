"""Load a model whole and save it. Safetensors only: no pickle is ever opened, no code of a repository is ever run."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from editing.errors import InputError, ModelError

DTypeName = Literal["auto", "float32", "bfloat16"]


def choose_device(name: str = "auto") -> torch.device:
    """A device by name; ``auto`` takes the first GPU, else the CPU.

    Raises:
        InputError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device: {name} asked for, but this machine shows torch {torch.cuda.device_count()} CUDA devices")
    return device


def load(name: str | os.PathLike[str], *, device: torch.device, dtype: DTypeName = "auto") -> tuple[PreTrainedModel, Any]:
    """Load a causal language model and its tokenizer, frozen and in evaluation mode.

    Args:
        name: A folder, or a repository id of the Hugging Face Hub.
        device: Where the weights go.
        dtype: ``auto`` keeps float32 checkpoints as they are and loads half-precision ones in bfloat16.

    Raises:
        ModelError: One line saying what is missing or unsupported.
    """
    path = Path(name)
    if path.is_dir():
        _check_folder(path)
    elif path.exists() or str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
        raise ModelError(f"{name}: expected a folder with a model, found {'a file' if path.exists() else 'nothing'}")
    config = _attempt(name, "configuration", lambda: AutoConfig.from_pretrained(name))
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{name}: the checkpoint is quantized; weights must be float32, bfloat16 or float16 to be edited")
    model, info = _attempt(
        name,
        "model",
        lambda: AutoModelForCausalLM.from_pretrained(name, dtype=_resolve_dtype(config, dtype), use_safetensors=True, output_loading_info=True),
    )
    missing = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info.get("mismatched_keys", ()))
    if missing:
        raise ModelError(f"{name}: {len(missing)} weights are missing or of a wrong shape in its safetensors files, the first is {missing[0]}")
    tokenizer = _attempt(name, "tokenizer", lambda: AutoTokenizer.from_pretrained(name))
    return model.eval().requires_grad_(False).to(device), tokenizer


def save(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write a model that plain ``AutoModelForCausalLM.from_pretrained(folder)`` loads."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.glob("*.safetensors"):  # which are written for their owner alone
        file.chmod(0o666 & ~umask)


def saved_size(model: PreTrainedModel) -> int:
    """Bytes that :func:`save` writes for the weights, tied ones counted once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _resolve_dtype(config: Any, dtype: DTypeName) -> torch.dtype:
    if dtype != "auto":
        return torch.float32 if dtype == "float32" else torch.bfloat16
    stored = config.get_text_config().dtype or config.dtype
    return torch.float32 if stored in (None, torch.float32, torch.float64) else torch.bfloat16


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: has no config.json, so it is not a model folder")
    index = path / "model.safetensors.index.json"
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [f.name for f in path.glob("*.safetensors")]
    except (ValueError, KeyError, AttributeError):
        raise ModelError(f"{index}: is not a safetensors index") from None
    if not names:
        pickled = any(path.glob("*.bin")) or any(path.glob("*.pt"))
        raise ModelError(f"{path}: has no safetensors weights" + ("; its pickle files are not opened, convert them first" if pickled else ""))
    for name in names:
        if not (path / name).is_file():
            raise ModelError(f"{path}: the weights file {name} named in its index is missing")
        try:
            with safe_open(path / name, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path / name}: is damaged or not a safetensors file ({error})") from None


def _attempt(name: object, part: str, action: Any) -> Any:
    try:
        return action()
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{name}: its {part} could not be loaded: {lines[0]}") from error
