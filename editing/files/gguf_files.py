"""GGUF, the files of llama.cpp: an adapter of the shifts, or a copy of the base's own file with the edited matrices replaced.

    adapter       blk.N.NAME.weight.lora_a (r, d_in), .lora_b (d_out, r) float32; llama.cpp scales by alpha / r, which is 1 here
    whole model   every tensor and field of the base's file, byte for byte, but the edited matrices, which are float32

llama.cpp orders the rows of the queries and keys of Llama and Mistral by halves of a head; so do the rows that are written here. Needs
the ``gguf`` package.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from editing.errors import InputError, ModelError, first_line
from editing.low_rank import LowRank

_ARCHITECTURES = {
    **dict.fromkeys(("llama", "mistral"), "llama"),
    **{name: name for name in ("qwen2", "qwen3", "gemma", "gemma2", "phi3")},
    **dict.fromkeys(("gemma3", "gemma3_text"), "gemma3"),
}
"""llama.cpp's name of each ``model_type`` whose linears it stores as they are, or as :func:`_reordered` says."""

_REORDERED = ("q_proj", "k_proj")
_SAME_BASE = 0.2
"""Share of a matrix's norm by which a quantized one may differ from it; another model's differs by more than 1."""


class GgufNames:
    """Where llama.cpp has the linears of a model.

    Args:
        config: The model's configuration.
        name: What to call the model in messages.

    Attributes:
        architecture: llama.cpp's name of it.

    Raises:
        InputError: ``gguf`` is not installed.
        ModelError: The architecture is not one whose layout is known here.
    """

    def __init__(self, config: Any, name: object) -> None:
        gguf = import_gguf()
        if config.model_type not in _ARCHITECTURES:
            known = ", ".join(_ARCHITECTURES)
            raise ModelError(f"{name}: GGUF's layout of {config.model_type} is not known here, only that of {known}; export --as checkpoint")
        self.architecture, text = _ARCHITECTURES[config.model_type], config.get_text_config(decoder=True)
        self._heads = {"q_proj": text.num_attention_heads, "k_proj": getattr(text, "num_key_value_heads", None) or text.num_attention_heads}
        arch = next(arch for arch, called in gguf.MODEL_ARCH_NAMES.items() if called == self.architecture)
        self._map = gguf.get_tensor_name_map(arch, text.num_hidden_layers)

    def tensor(self, module: str) -> str:
        """Name of a module's weight.

        Raises:
            ModelError: llama.cpp has no such tensor.
        """
        plain = module.replace("language_model.", "")
        found = self._map.get_name(plain if plain.startswith("model.") else f"model.{plain}")
        if found is None:
            raise ModelError(f"{module}: llama.cpp's {self.architecture} has no tensor for it; export --as checkpoint")
        return f"{found}.weight"

    def rows(self, module: str, weight: Tensor) -> Tensor:
        """A ``(d_out, k)`` matrix with its rows in llama.cpp's order."""
        kind = module.rpartition(".")[2]
        if self.architecture != "llama" or kind not in _REORDERED:
            return weight
        heads = self._heads[kind]
        return weight.reshape(heads, 2, len(weight) // heads // 2, -1).transpose(1, 2).reshape(weight.shape)


def write_gguf_adapter(path: Path, shifts: Mapping[str, LowRank], names: GgufNames) -> int:
    """Write an adapter; its rank. Factors keep their own ranks: the scale is folded into ``B``.

    Args:
        path: The file.
        shifts: Total shift of each edited module, by module name.
        names: Where llama.cpp has the modules.
    """
    gguf = import_gguf()
    rank = max(shift.rank for shift in shifts.values())
    writer = gguf.GGUFWriter(path, names.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    for name, shift in shifts.items():
        tensor = names.tensor(name)
        writer.add_tensor(f"{tensor}.lora_a", shift.right.contiguous().numpy())
        writer.add_tensor(f"{tensor}.lora_b", (names.rows(name, shift.left) * (shift.rank / rank)).contiguous().numpy())
    _write(writer)
    return rank


def write_edited_gguf(path: Path, base: Path, weights: Mapping[str, Tensor], originals: Mapping[str, Tensor], names: GgufNames) -> None:
    """Copy a model's GGUF file with the edited matrices in float32 in the place of its own.

    Args:
        path: The file to write.
        base: GGUF file of the unedited model.
        weights: Edited weights ``(d_out, d_in)`` by module name.
        originals: The same from before the first edit, in any precision.
        names: Where llama.cpp has the modules.

    Raises:
        ModelError: ``base`` is no GGUF file, or of another model.
    """
    gguf = import_gguf()
    try:
        reader = gguf.GGUFReader(base)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{base}: is no GGUF file ({first_line(error)}); give that of the unedited model with --base-gguf") from None
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    edited = {names.tensor(name): name for name in weights}
    held = {tensor.name: tensor for tensor in reader.tensors}
    if architecture != names.architecture or (lacking := sorted(edited.keys() - held.keys())):
        found = f"its architecture is {architecture}" if architecture != names.architecture else f"it has no {lacking[0]}"
        raise ModelError(f"{base}: is not the run's model, {names.architecture} in GGUF: {found}; give its own file with --base-gguf")
    for key, name in edited.items():
        stored, expected = torch.from_numpy(gguf.quants.dequantize(held[key].data, held[key].tensor_type)), names.rows(name, originals[name].float())
        if stored.shape != expected.shape or (stored - expected).norm() > _SAME_BASE * expected.norm():
            raise ModelError(f"{base}: its {key} is not that of the run's model; give that model's own file with --base-gguf")
    writer = gguf.GGUFWriter(path, architecture)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != gguf.Keys.General.ARCHITECTURE:
            kind = field.types[0]
            writer.add_key_value(key, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for key, tensor in held.items():
        if key in edited:
            writer.add_tensor(key, names.rows(edited[key], weights[edited[key]].float()).contiguous().numpy())
        else:
            writer.add_tensor(key, np.ascontiguousarray(tensor.data), raw_dtype=tensor.tensor_type)
    _write(writer)


def import_gguf() -> Any:
    """The ``gguf`` package.

    Raises:
        InputError: It is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise InputError("gguf: the package is not installed; install it with: pip install 'ultraedit-orchestrator[export]'") from None
    import gguf.quants

    return gguf


def _write(writer: Any) -> None:
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
