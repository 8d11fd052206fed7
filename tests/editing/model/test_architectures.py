"""Every architecture is edited, saved and loaded again, or refused in one line that names the cause."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from editing import Editor, EditRequest, InputError, ModelError
from editing.model.decoder import Decoder
from tests.support.paths import PARITY

TOKENIZER = AutoTokenizer.from_pretrained(PARITY / "llama-tiny" / "model")
WORDS = len(TOKENIZER)
TOKENS = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {**TOKENS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 64}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
GPT = {**TOKENS, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "n_inner": 48}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

SUPPORTED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bloom": ("bloom", "mlp.dense_4h_to_h", {**TOKENS, "hidden_size": 32, "n_layer": 4, "n_head": 4}),
    "codegen": ("codegen", "mlp.fc_out", {**GPT, "rotary_dim": 4}),
    "cohere": ("cohere", "mlp.down_proj", {**GROUPED, "logit_scale": 0.0625}),
    "falcon": ("falcon", "mlp.dense_4h_to_h", {**SMALL, "ffn_hidden_size": 48}),
    "falcon, one layer after the other": ("falcon", "mlp.dense_4h_to_h", {**SMALL, "parallel_attn": False, "new_decoder_architecture": False}),
    "gemma 2": ("gemma2", "mlp.down_proj", {**GROUPED, "final_logit_softcapping": 5.0}),
    "glm 4": ("glm4", "mlp.down_proj", GROUPED),
    "gpt-neox": ("gpt_neox", "mlp.dense_4h_to_h", SMALL),
    "gpt-oss": ("gpt_oss", "self_attn.o_proj", {**GROUPED, **EXPERTS}),
    "granite": ("granite", "mlp.down_proj", {**GROUPED, "logits_scaling": 8.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}),
    "llama 4 text": ("llama4_text", "feed_forward.shared_expert.down_proj", {**GROUPED, **EXPERTS, "intermediate_size_mlp": 48}),
    "mixtral": ("mixtral", "self_attn.o_proj", {**GROUPED, **EXPERTS}),
    "mpt": ("mpt", "ffn.down_proj", {**TOKENS, "d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 64}),
    "nemotron": ("nemotron", "mlp.down_proj", GROUPED),
    "olmo 2": ("olmo2", "mlp.down_proj", GROUPED),
    "opt": ("opt", "fc2", {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "phi": ("phi", "mlp.fc2", SMALL),
    "qwen 2 moe": ("qwen2_moe", "mlp.shared_expert.down_proj", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 48}),
    "qwen 3": ("qwen3", "mlp.down_proj", GROUPED),
    "qwen 3 moe": ("qwen3_moe", "self_attn.o_proj", {**GROUPED, **EXPERTS}),
    "smollm 3": ("smollm3", "mlp.down_proj", GROUPED),
    "starcoder 2": ("starcoder2", "mlp.c_proj", GROUPED),
}
_GEMMA_3N = {
    **GROUPED,
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": WORDS,
    "laurel_rank": 8,
    "altup_num_inputs": 2,
    "activation_sparsity_pattern": [0.0] * 4,
}
REFUSED = {
    "bert": ("bert", {**SMALL, "is_decoder": True}, "cannot be run in two halves|is an encoder"),
    "gemma 3n": ("gemma3n_text", _GEMMA_3N, "Gemma3nForCausalLM: this architecture is not supported, its layers cannot be run in two halves: "),
    "gpt": ("openai-gpt", GPT, "OpenAIGPTLMHeadModel: this architecture is not supported, its layers cannot be run in two halves: "),
    "gpt-2": ("gpt2", GPT, "its layers hold no Linear, only Conv1D, which is not supported"),
}


def tiny(architecture: str, values: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **values), dtype=torch.float32).eval()


@pytest.mark.parametrize("name", SUPPORTED)
def test_it_is_edited_and_saved_and_loads_again_with_the_same_weights(name: str, tmp_path: Path) -> None:
    architecture, module, values = SUPPORTED[name]
    tiny(architecture, values).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    editor = Editor.from_pretrained(tmp_path / "base", modules=[f"layers.2.{module}"], learning_rate=1e-2, device="cpu")
    before = editor.digests()
    (report,) = editor.apply([EditRequest("The capital of France is", "Rome"), EditRequest("Mars is ruled by", "Turkish")])
    assert editor.digests() != before
    assert report.loss > 0
    editor.save(tmp_path / "edited")
    again = Editor.from_pretrained(tmp_path / "edited", modules=[f"layers.2.{module}"], learning_rate=1e-2, device="cpu")
    assert again.digests() == editor.digests()


@pytest.mark.parametrize("name", SUPPORTED)
def test_its_halves_give_its_logits(name: str) -> None:
    architecture, _, values = SUPPORTED[name]
    model = tiny(architecture, values)
    decoder = Decoder(model)
    input_ids = torch.randint(3, WORDS, (2, 7))
    with torch.no_grad():
        expected = model(input_ids=input_ids, use_cache=False).logits
        torch.testing.assert_close(decoder.logits(decoder.suffix(input_ids, decoder.prefix(input_ids, 2), 2)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line_with_the_cause(name: str, tmp_path: Path) -> None:
    architecture, values, words = REFUSED[name]
    tiny(architecture, values).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises((ModelError, InputError), match=words) as error:
        Editor.from_pretrained(tmp_path, modules=["layers.2.mlp.down_proj"], learning_rate=1e-2, device="cpu")
    assert "\n" not in str(error.value)
