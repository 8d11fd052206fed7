"""Tiny random models of the families, for tests of what differs between them."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPTJ = {"n_embd": 32, "n_layer": 4, "n_head": 4, "rotary_dim": 4, "n_positions": 64, "vocab_size": 97, "n_inner": 48}
_GEMMA = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_key_value_heads": 1}

FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "gptj": ("transformer.h.{i}.mlp.fc_out", _GPTJ),
    "llama": ("model.layers.{i}.mlp.gate_proj", _SMALL),
    "mistral": ("model.layers.{i}.mlp.down_proj", {**_SMALL, "sliding_window": None}),
    "qwen2": ("model.layers.{i}.mlp.up_proj", {k: v for k, v in _SMALL.items() if k != "head_dim"}),
    "phi3": ("model.layers.{i}.mlp.down_proj", {k: v for k, v in _SMALL.items() if k != "head_dim"}),
    "gpt2": ("transformer.h.{i}.mlp.c_proj", {name: value for name, value in _GPTJ.items() if name != "rotary_dim"}),
    "gemma3_text": ("model.layers.{i}.mlp.gate_proj", {**_SMALL, **_GEMMA}),
}


def tiny_model(family: str, *, seed: int = 0) -> tuple[PreTrainedModel, list[str]]:
    """A random model with random norms and biases, and two of its modules to edit."""
    pattern, values = FAMILIES[family]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model, [pattern.format(i=1), pattern.format(i=2)]
