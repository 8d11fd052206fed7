"""Tiny random models of every family as folders on disk, in the shapes that are hard to cut."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.families import FAMILIES
from tests.support.paths import PARITY

_VOCABULARY = 641  # the tokenizer's 640 and one more, so that it is not even
_COMMON = {"vocab_size": _VOCABULARY, "max_position_embeddings": 256, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}
_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 16}


@dataclass(frozen=True)
class TinyModel:
    """A model to cut, and what to edit in it.

    Attributes:
        name: Name of the case.
        family: Hugging Face model type.
        modules: Patterns of the edited modules: both kinds of cut, in two layers.
        changes: What differs from the family's tiny model.
    """

    name: str
    family: str
    modules: tuple[str, ...]
    changes: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the model and a tokenizer to a folder."""
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(self.family, **self._config())).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        model.save_pretrained(folder, max_shard_size="100KB")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(PARITY / "llama-tiny" / "model" / name, folder / name)

    def _config(self) -> dict[str, Any]:
        if self.family == "gemma3":
            text = {**FAMILIES["gemma3_text"][1], **_COMMON, **self.changes}
            return {"text_config": text, "vision_config": _VISION, "mm_tokens_per_image": 4}
        if self.family in ("gptj", "gpt2"):
            return {**FAMILIES[self.family][1], "vocab_size": _VOCABULARY, "n_positions": 256, "bos_token_id": 0, "eos_token_id": 1, **self.changes}
        return {**FAMILIES[self.family][1], **_COMMON, **self.changes}


def _mlp(prefix: str, *names: str) -> tuple[str, ...]:
    return (f"{prefix}.{{1,2}}.{{{','.join(names)}}}",)


_LLAMA = _mlp("model.layers", "mlp.gate_proj", "mlp.down_proj", "self_attn.q_proj", "self_attn.o_proj")
_UNTIED, _TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}

TINY = [
    TinyModel("gptj", "gptj", _mlp("transformer.h", "mlp.fc_in", "mlp.fc_out", "attn.q_proj", "attn.out_proj")),
    TinyModel("llama", "llama", _LLAMA, _UNTIED),
    TinyModel("llama-tied-with-biases", "llama", _LLAMA, {**_TIED, "attention_bias": True, "mlp_bias": True}),
    TinyModel("llama-one-kv-head", "llama", _LLAMA, {**_UNTIED, "num_key_value_heads": 1}),
    TinyModel(
        "llama-uneven", "llama", _LLAMA, {**_UNTIED, "hidden_size": 33, "intermediate_size": 49, "num_attention_heads": 3, "num_key_value_heads": 3}
    ),
    TinyModel("mistral", "mistral", _mlp("model.layers", "mlp.up_proj", "mlp.down_proj"), _UNTIED),
    TinyModel("mistral-tied", "mistral", _mlp("model.layers", "mlp.up_proj", "mlp.down_proj"), _TIED),
    TinyModel("qwen2", "qwen2", _mlp("model.layers", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), _TIED),
    TinyModel("qwen2-one-kv-head", "qwen2", _mlp("model.layers", "mlp.up_proj", "self_attn.o_proj"), {**_UNTIED, "num_key_value_heads": 1}),
    TinyModel("phi3", "phi3", _mlp("model.layers", "mlp.gate_up_proj", "mlp.down_proj", "self_attn.qkv_proj", "self_attn.o_proj"), _UNTIED),
    TinyModel("phi3-uneven", "phi3", _mlp("model.layers", "mlp.gate_up_proj", "mlp.down_proj"), {**_TIED, "intermediate_size": 49}),
    TinyModel("gemma3_text", "gemma3_text", _mlp("model.layers", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), _TIED),
    TinyModel("gemma3", "gemma3", _mlp("language_model.model.layers", "mlp.gate_proj", "mlp.down_proj"), _TIED),
]

GPT2 = TinyModel("gpt2", "gpt2", _mlp("transformer.h", "mlp.c_fc", "mlp.c_proj", "attn.c_attn", "attn.c_proj"))
"""Its weights lie transposed. It is not cut into shards."""
