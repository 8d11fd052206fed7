"""Models that are no folder of plain weights, made into one: a GGUF file is dequantized, an adapter is merged into its base.

    NAME.gguf, or a folder with one                 every tensor in float32, as transformers reads it; needs gguf and accelerate
    adapter_config.json, adapter_model.safetensors  merged into the base that it names, in the base's precision; needs peft
    4 or 8 bits of bitsandbytes                     dequantized into the precision that the checkpoint computes in; needs bitsandbytes

The result is an ordinary checkpoint in the user's cache, made once; all that edits, streams, cuts or copies a model takes it as any other.
:data:`ACCOUNT` in it says what it was made of. It may be deleted while no run uses it: it is made again when it is needed, bit for bit.
"""

import hashlib
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from editing.atomic import whole_folder
from editing.errors import InputError, ModelError, first_line, ran_out_of_memory
from editing.files.adapter import CONFIG, WEIGHTS
from editing.files.checkpoint_files import convert_command, stamp_of
from editing.files.gguf_files import import_gguf
from editing.files.locks import alone
from editing.files.saving import save_plain

logger = logging.getLogger("ultraedit")

ACCOUNT = ".converted.json"
"""What a model was made of, in its folder; hidden, so that it goes into no edited copy."""

_RULES = 1
"""Grows when the same source would give another model."""

_PART = re.compile(r"-\d{5}-of-\d{5}$")
_ROPE_FACTORS = "rope_freqs.weight"

FolderOf = Callable[[str], Path]
"""The folder of a model's name."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model to be converted.

    Attributes:
        kind: ``gguf``, ``adapter`` or ``bitsandbytes``.
        file: The GGUF file, the adapter's weights, or the checkpoint's configuration.
    """

    kind: str
    file: Path

    @property
    def name(self) -> str:
        """What to call the folder that it becomes."""
        return self.file.stem if self.kind == "gguf" else self.file.absolute().parent.name

    @property
    def weights(self) -> list[Path]:
        """Its own weight files."""
        return sorted(self.file.parent.glob("*.safetensors")) if self.kind == "bitsandbytes" else [self.file]


def source_at(path: Path) -> Source | None:
    """What there is to convert; ``None`` for a folder of plain weights, or if nothing is there.

    Raises:
        ModelError: It cannot be told which of several files is meant, or it is a part of one, or an adapter without safetensors weights.
    """
    if path.is_file():
        return _gguf(path) if path.suffix == ".gguf" else None
    if not path.is_dir():
        return None
    if (path / "config.json").is_file() and any(file.name != WEIGHTS for file in path.glob("*.safetensors")):
        return Source("bitsandbytes", path / "config.json") if quantization_of(path) == "bitsandbytes" else None
    if (path / CONFIG).is_file():
        return _adapter(path)
    files = sorted(file for file in path.glob("*.gguf") if not file.name.startswith("mmproj"))
    if len(files) > 1 and not _PART.search(files[0].stem):
        raise ModelError(f"{path}: holds {len(files)} GGUF files, {files[0].name} the first; give one of them as the model")
    return _gguf(files[0]) if files else None


def plain_folder(source: Source, folder_of: FolderOf) -> Path:
    """The folder of plain weights that a source becomes, made at the first call.

    Args:
        source: The source.
        folder_of: The folder of an adapter's base model.

    Raises:
        ModelError: It cannot be converted, or the base is not there.
        InputError: A package that is needed is not installed, or the cache cannot be written.
    """
    base = _base_of(source, folder_of) if source.kind == "adapter" else None
    used = [source.file, *source.weights, *(() if base is None else sorted(base.glob("*.safetensors")))]
    stamps = [[str(file.resolve()), *stamp_of(file.stat())] for file in used]
    key = hashlib.sha256(json.dumps([_RULES, stamps]).encode()).hexdigest()
    folder = cache("models") / f"{source.name}-{key[:16]}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder.with_name(f".{folder.name}.lock")):
            if not (folder / ACCOUNT).is_file():
                with whole_folder(folder) as partial:
                    _convert(source, base, partial)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: the converted model could not be written ({error}); set XDG_CACHE_HOME to a folder with room") from None
    return folder


def account_in(folder: Path) -> dict[str, Any] | None:
    """What the model in a folder was made of; ``None`` if it was not converted."""
    path = folder / ACCOUNT
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def quantization_of(folder: Path) -> str | None:
    """By which method a folder's checkpoint says that it is quantized; ``None`` if it says nothing."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return None  # who loads it says so
    return str(found.get("quant_method", "bitsandbytes")) if isinstance(found, dict) else None


def cache(kind: str) -> Path:
    """The user's folder for what can be made again, of one kind: ``models`` that were converted, ``answers`` of unedited ones."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ultraedit" / kind


def _gguf(file: Path) -> Source:
    if _PART.search(file.stem):
        raise ModelError(f"{file}: is a part of a model; join the parts with: llama-gguf-split --merge {file.name} WHOLE.gguf")
    return Source("gguf", file)


def _adapter(path: Path) -> Source:
    if not (path / WEIGHTS).is_file():
        hint = f"; convert its pickle file with: {convert_command(path, 'adapter_model')}" if (path / "adapter_model.bin").is_file() else ""
        raise ModelError(f"{path}: is an adapter, and has no {WEIGHTS}{hint}")
    return Source("adapter", path / WEIGHTS)


def _base_of(source: Source, folder_of: FolderOf) -> Path:
    """The folder of the model that an adapter names: as it stands, or beside the adapter."""
    config = source.file.with_name(CONFIG)
    try:
        named = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        named = None
    if not isinstance(named, str) or not named:
        raise ModelError(f"{config}: names no base_model_name_or_path; write the folder or Hub id of the model there that the adapter was trained on")
    beside = source.file.parent / named
    try:
        return folder_of(str(beside if beside.is_dir() and not Path(named).is_dir() else named))
    except ModelError as error:
        raise ModelError(f"{config}: its base model cannot be used: {error}; correct base_model_name_or_path in it") from None


def _convert(source: Source, base: Path | None, folder: Path) -> None:
    began = time.perf_counter()
    what = {"gguf": "dequantized from GGUF", "adapter": f"merged into its base {base}", "bitsandbytes": "dequantized from bitsandbytes"}[source.kind]
    called = source.file if source.kind == "gguf" else source.file.parent
    logger.info("model     %s is %s, once", called, what)
    try:
        if base is not None:
            how = _merge(source.file.parent, base, folder)
        else:
            how = _dequantize(source.file, folder) if source.kind == "gguf" else _dequantize_bitsandbytes(source.file.parent, folder)
    except (InputError, ModelError, OSError, SafetensorError):
        raise
    except Exception as error:  # on a broken file the libraries raise whatever they stumble over
        if ran_out_of_memory(error):
            raise
        raise ModelError(f"{called}: could not be {'merged' if base is not None else 'dequantized'}: {first_line(error)}") from error
    account = {"from": str(source.file.absolute()), "sha256": _digest(source.weights), **how}
    (folder / ACCOUNT).write_text(json.dumps(account, indent=2) + "\n", encoding="utf-8")
    logger.info("model     done in %.0f s", time.perf_counter() - began)


def _dequantize(file: Path, folder: Path) -> dict[str, Any]:
    """Write a GGUF file's model; what to say of it."""
    gguf = import_gguf()
    reader = gguf.GGUFReader(file)
    stored = sorted({tensor.tensor_type.name for tensor in reader.tensors})
    names = {tensor.name for tensor in reader.tensors}
    if _ROPE_FACTORS in names:
        logger.warning("model     %s: transformers does not read its %s; the model may differ at long contexts", file.name, _ROPE_FACTORS)
    del reader
    model, info = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"]:
        raise ModelError(f"{file}: lacks {len(info['missing_keys'])} weights of its architecture, the first is {min(info['missing_keys'])}")
    _mark_plain(model)
    _save(model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), folder)
    return {"how": "dequantized to float32", "stored": stored}


def _dequantize_bitsandbytes(folder: Path, target: Path) -> dict[str, Any]:
    """Write the model of a checkpoint in 4 or 8 bits; what to say of it."""
    try:
        import bitsandbytes  # noqa: F401  # transformers says less clearly that it is missing
    except ImportError:
        hint = "or take the unquantized checkpoint, edit it, and quantize the result"
        raise InputError(
            f"{folder}: is quantized by bitsandbytes, and that package is not installed; install it with: "
            f"pip install 'ultraedit-orchestrator[quantized]', {hint}"
        ) from None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True, trust_remote_code=False)
    precision = model.dtype
    model = model.dequantize().to(precision)
    model._weight_conversions = None  # those back into 4 bits, with which it would be saved
    _mark_plain(model)
    _save(model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False), target)
    return {"how": f"dequantized to {str(precision).removeprefix('torch.')}", "stored": "bitsandbytes"}


def _mark_plain(model: PreTrainedModel) -> None:
    """Let a model be saved: one that is marked as quantized refuses."""
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _merge(adapter: Path, base: Path, folder: Path) -> dict[str, Any]:
    """Write an adapter's base with the adapter merged into it; what to say of it."""
    try:
        from peft import PeftModel
    except ImportError:
        raise InputError("peft: the package is not installed; install it with: pip install 'ultraedit-orchestrator[export]'") from None
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", use_safetensors=True, trust_remote_code=False)
    precision = model.dtype
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        adapted = PeftModel.from_pretrained(model, str(adapter), use_safetensors=True)
    if not hasattr(adapted, "merge_and_unload"):
        kind = getattr(adapted.active_peft_config.peft_type, "value", "of its kind")
        raise ModelError(f"{adapter}: an adapter {kind} changes no weights, so it cannot be merged; give its base model")
    merged = adapted.merge_and_unload(safe_merge=True)
    own = adapter if (adapter / "tokenizer_config.json").is_file() else base
    _save(merged, AutoTokenizer.from_pretrained(own, trust_remote_code=False), folder)
    return {"how": f"merged into its base in {str(precision).removeprefix('torch.')}", "base": str(base)}


def _save(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    model.config._name_or_path = ""
    save_plain(model, tokenizer, folder)


def _digest(files: list[Path]) -> str:
    """SHA-256 of a file, or of several one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while chunk := content.read(2**24):
                digest.update(chunk)
    return digest.hexdigest()
