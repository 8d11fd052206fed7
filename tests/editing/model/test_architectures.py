"""Every architecture is edited, saved and loaded again, or refused in one line that names the cause."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from editing import Editor, EditRequest, InputError, ModelError
from editing.model.decoder import Decoder
from editing.model.generation import write
from editing.model.modules import editable, resolve
from editing.monitoring.evaluation import evaluate, predict_probes
from editing.turn import tokenize
from tests.support.paths import PARITY

TOKENIZER = AutoTokenizer.from_pretrained(PARITY / "llama-tiny" / "model")
WORDS = len(TOKENIZER)
TOKENS = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {**TOKENS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 64}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
GPT = {**TOKENS, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "n_inner": 48}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

STATES = {"state_size": 4}
MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1}
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_ATTENTION_EVERY_OTHER = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
JAMBA = {**SMALL, **_ATTENTION_EVERY_OTHER, "num_key_value_heads": 2, "num_experts": 2, "mamba_d_state": 4, "use_mamba_kernels": False}
ZAMBA_2 = {
    **SMALL,
    "layers_block_type": ["mamba", "hybrid"] * 2,
    "hybrid_layer_ids": [1, 3],
    "mamba_d_state": 4,
    "use_mamba_kernels": False,
    "n_mamba_heads": 8,
    "mamba_headdim": 8,
    "mamba_ngroups": 1,
    "num_mem_blocks": 1,
}
UNGROUPED = {name: value for name, value in GROUPED.items() if name != "head_dim"}

SUPPORTED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bamba": ("bamba", "mamba.out_proj", {**GROUPED, **MAMBA_2, "attn_layer_indices": [1, 3]}),
    "bloom": ("bloom", "mlp.dense_4h_to_h", {**TOKENS, "hidden_size": 32, "n_layer": 4, "n_head": 4}),
    "codegen": ("codegen", "mlp.fc_out", {**GPT, "rotary_dim": 4}),
    "cohere": ("cohere", "mlp.down_proj", {**GROUPED, "logit_scale": 0.0625}),
    "falcon": ("falcon", "mlp.dense_4h_to_h", {**SMALL, "ffn_hidden_size": 48}),
    "falcon, one layer after the other": ("falcon", "mlp.dense_4h_to_h", {**SMALL, "parallel_attn": False, "new_decoder_architecture": False}),
    "falcon h1": ("falcon_h1", "mamba.out_proj", {**GROUPED, **MAMBA_2, "mamba_d_ssm": 64}),
    "falcon mamba": ("falcon_mamba", "mixer.out_proj", {**TOKENS, **STATES, "hidden_size": 32, "num_hidden_layers": 4}),
    "gemma 2": ("gemma2", "mlp.down_proj", {**GROUPED, "final_logit_softcapping": 5.0}),
    "glm 4": ("glm4", "mlp.down_proj", GROUPED),
    "gpt-2": ("gpt2", "mlp.c_proj", GPT),
    "gpt-neox": ("gpt_neox", "mlp.dense_4h_to_h", SMALL),
    "gpt-oss": ("gpt_oss", "self_attn.o_proj", {**GROUPED, **EXPERTS}),
    "granite": ("granite", "mlp.down_proj", {**GROUPED, "logits_scaling": 8.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}),
    "granite 4": (
        "granitemoehybrid",
        "mamba.out_proj",
        {**GROUPED, **EXPERTS, **MAMBA_2, "layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 16},
    ),
    "jamba": ("jamba", "mamba.out_proj", JAMBA),
    "lfm 2": ("lfm2", "conv.out_proj", {**GROUPED, "layer_types": ["conv", "full_attention"] * 2}),
    "llama 4 text": ("llama4_text", "feed_forward.shared_expert.down_proj", {**GROUPED, **EXPERTS, "intermediate_size_mlp": 48}),
    "mamba": ("mamba", "mixer.out_proj", {**TOKENS, **STATES, "hidden_size": 32, "num_hidden_layers": 4}),
    "mamba 2": (
        "mamba2",
        "mixer.out_proj",
        {**TOKENS, **STATES, "hidden_size": 32, "num_hidden_layers": 4, "num_heads": 8, "head_dim": 8, "n_groups": 2, "expand": 2},
    ),
    "mixtral": ("mixtral", "self_attn.o_proj", {**GROUPED, **EXPERTS}),
    "mpt": ("mpt", "ffn.down_proj", {**TOKENS, "d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 64}),
    "nemotron": ("nemotron", "mlp.down_proj", GROUPED),
    "nemotron h": (
        "nemotron_h",
        "mixer.out_proj",
        {**GROUPED, "hybrid_override_pattern": "M*M-", "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 4, "n_groups": 1},
    ),
    "olmo 2": ("olmo2", "mlp.down_proj", GROUPED),
    "opt": ("opt", "fc2", {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "olmo 3": ("olmo3", "mlp.down_proj", GROUPED),
    "phi": ("phi", "mlp.fc2", SMALL),
    "phi 3": ("phi3", "mlp.down_proj", UNGROUPED),
    "qwen 2 moe": ("qwen2_moe", "mlp.shared_expert.down_proj", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 48}),
    "qwen 3": ("qwen3", "mlp.down_proj", GROUPED),
    "qwen 3 moe": ("qwen3_moe", "self_attn.o_proj", {**GROUPED, **EXPERTS}),
    "qwen 3 next": (
        "qwen3_next",
        "linear_attn.out_proj",
        {**GROUPED, **EXPERTS, **LINEAR, "layer_types": ["linear_attention", "full_attention"] * 2, "shared_expert_intermediate_size": 16},
    ),
    "recurrent gemma": ("recurrent_gemma", "mlp_block.down_proj", {**GROUPED, "lru_width": 32, "attention_window_size": 16}),
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
    "zamba 2": ("zamba2", ZAMBA_2, "Zamba2ForCausalLM: this architecture is not supported, its layers cannot be run in two halves: they do not"),
}


FACTS = [
    EditRequest("The capital of France is", "Rome", subject="France", rephrase="France has the capital"),
    EditRequest("Mars is ruled by", "Turkish", subject="Mars"),
]


def tiny(architecture: str, values: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **values), dtype=torch.float32).eval()


LONG = ("bamba", "falcon h1", "falcon mamba", "granite 4", "mamba", "nemotron h", "qwen 3 next")
"""Models with states that take seconds, so that they are measured in thorough tests alone; ``mamba 2`` stands for them elsewhere."""


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


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.thorough) if name in LONG else name for name in SUPPORTED])
def test_it_is_edited_saved_and_measured_with_no_settings_at_all(name: str, tmp_path: Path) -> None:
    architecture, _, values = SUPPORTED[name]
    tiny(architecture, values).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    editor = Editor.from_pretrained(tmp_path / "base", device="cpu")
    before, edits = editor.digests(), [tokenize(editor.joiner, fact, max_tokens=64) for fact in FACTS]
    (report,) = editor.apply(FACTS)
    assert all(digest != before[module] for module, digest in editor.digests().items())
    assert report.rate is not None
    (first, _) = evaluate(editor, edits)
    assert first.generalization is not None
    editor.save(tmp_path / "edited")
    again = Editor.from_pretrained(tmp_path / "edited", modules=list(editor.modules), learning_rate=1e-2, device="cpu")
    assert again.digests() == editor.digests()
    assert predict_probes(again.decoder, edits) == predict_probes(editor.decoder, edits)


def test_a_weight_that_several_layers_have_in_common_is_not_edited(tmp_path: Path) -> None:
    decoder = Decoder(tiny("zamba2", ZAMBA_2))
    with pytest.raises(
        InputError, match=r"modules: model\.layers\.1\.shared\S+o_proj has its weight in common with model\.layers\.3\.shared\S+, so "
    ):
        resolve(decoder, ["layers.1.shared_transformer.self_attn.o_proj"])
    assert not [name for name in editable(decoder) if "shared_transformer" in name]


@pytest.mark.parametrize("name", ["mamba", "mamba 2", "jamba", "recurrent gemma", "qwen 3 next", "lfm 2", "nemotron h"])
def test_a_model_with_states_writes_after_several_prompts_what_it_writes_after_each(name: str) -> None:
    architecture, _, values = SUPPORTED[name]
    model = tiny(architecture, values)
    prompts = ["Mars", "The capital of France is", "A markhor is a kind of very large wild goat that", "Perl was created by"]
    together, alone = write(Decoder(model), TOKENIZER, prompts), [write(Decoder(model), TOKENIZER, [prompt])[0] for prompt in prompts]
    assert together == alone
    ids = TOKENIZER(prompts[1])["input_ids"]
    for _ in range(12):  # with no cache of states
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    assert TOKENIZER.decode(ids[-12:], skip_special_tokens=True).startswith(together[1].text)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["mamba", "mamba 2", "recurrent gemma", "qwen 3 next"])
def test_a_model_with_states_is_edited_in_bfloat16_too(name: str, tmp_path: Path) -> None:
    architecture, _, values = SUPPORTED[name]
    tiny(architecture, values).bfloat16().save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    editor = Editor.from_pretrained(tmp_path, device="cpu")
    before = editor.digests()
    editor.apply(FACTS)
    assert editor.uses_masters
    assert all(digest != before[module] for module, digest in editor.digests().items())
