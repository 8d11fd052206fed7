"""Load a model whole and save it. Safetensors only: no pickle is ever opened, no code of a repository is ever run."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from editing.errors import InputError, ModelError

_FINGERPRINT_SAMPLE = 1024
"""Elements of each weight that the fingerprint reads."""

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
        raise InputError(f"device: there is no {name}; torch sees {torch.cuda.device_count()} CUDA devices here, give cpu, auto or one of them")
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
    path, called = Path(name), str(name)
    if path.is_dir():
        _check_folder(path)
    elif path.exists() or str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
        raise ModelError(f"{name}: expected a folder with a model, found {'a file' if path.exists() else 'nothing'}")
    else:
        called = f"{name} (no folder here, so taken for a Hub id)"
    # without trust_remote_code=False, transformers asks at the terminal whether a repository's code may run
    config = _attempt(called, "configuration", lambda: AutoConfig.from_pretrained(name, trust_remote_code=False))
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{name}: the checkpoint is quantized; weights must be float32, bfloat16 or float16 to be edited")
    model, info = _attempt(
        called,
        "model",
        lambda: AutoModelForCausalLM.from_pretrained(
            name,
            dtype=_resolve_dtype(config, dtype),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        ),
    )
    missing = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info.get("mismatched_keys", ()))
    if missing:
        raise ModelError(f"{name}: {len(missing)} weights are missing or of a wrong shape in its safetensors files, the first is {missing[0]}")
    tokenizer = _attempt(called, "tokenizer", lambda: AutoTokenizer.from_pretrained(name, trust_remote_code=False))
    model = model.eval().requires_grad_(False).to(device)
    _check_causal(name, model)
    return model, tokenizer


def save(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write a model that plain ``AutoModelForCausalLM.from_pretrained(folder)`` loads.

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


def saved_size(model: PreTrainedModel) -> int:
    """Bytes that :func:`save` writes for the weights, tied ones counted once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over a sample of every weight, the same for the same model wherever it lies; cheap at any size."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        sample = flat[:: max(1, flat.numel() // _FINGERPRINT_SAMPLE)].cpu().contiguous()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(sample.view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
        indexed = json.loads(index.read_text())["weight_map"].values() if index.is_file() else ()
        names = sorted({str(name) for name in indexed}) or [f.name for f in path.glob("*.safetensors")]
    except (ValueError, KeyError, TypeError, AttributeError):
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


@torch.no_grad()
def _check_causal(name: object, model: PreTrainedModel) -> None:
    """An encoder can be loaded as a causal model too; its logits tell, for they depend on what comes later."""
    input_ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=model.device).remainder(model.get_input_embeddings().num_embeddings)
    first, second = model(input_ids=input_ids, use_cache=False).logits[:, :3].float()
    if (first - second).norm() > torch.finfo(model.dtype).eps ** 0.5 * first.norm():  # a decoder gives 0, or rounding
        raise ModelError(f"{name}: {type(model).__name__} is an encoder, its answers depend on later tokens; expected a decoder-only language model")


def _attempt(name: object, part: str, action: Any) -> Any:
    try:
        return action()
    except Exception as error:  # on a broken folder the libraries raise whatever they stumble over
        lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
        reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
        raise ModelError(f"{name}: its {part} could not be loaded: {reason}") from error
