"""The presets of the published models: exactly the published modules, of the real models' shapes, and of no other model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from editing import Editor, EditRequest
from editing.config import EditorConfig
from editing.datasets import FORMATS
from editing.model.decoder import Decoder
from editing.model.modules import resolve
from editing.presets import all_presets, find_preset, unmeasured
from editing.presets.resolve import resolve_settings
from editing.sharding.shards import shard_of
from tests.support.tiny_models import TINY, TinyModel
from workers.engines.streamed import StreamedEngine
from workers.protocol import WorkerSpec

_LLAMA_SHAPE = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
_GEMMA = {"hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 16}
_QWEN = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
_PHI = {"hidden_size": 5120, "intermediate_size": 17920, "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 10}
_SMALL_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}

REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-j-6b": ("gptj", {"n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "vocab_size": 50400, "n_positions": 2048}),
    "mistral-7b-v0.3": ("mistral", {**_LLAMA_SHAPE, "vocab_size": 32768, "max_position_embeddings": 32768, "sliding_window": None}),
    "llama-3-8b-instruct": ("llama", {**_LLAMA_SHAPE, "vocab_size": 128256, "max_position_embeddings": 8192}),
    "qwen2.5-7b-instruct": ("qwen2", {**_QWEN, "vocab_size": 152064, "max_position_embeddings": 32768}),
    "phi-4": ("phi3", {**_PHI, "vocab_size": 100352, "max_position_embeddings": 16384, "pad_token_id": 100257}),
    "gemma-3-27b": ("gemma3_text", {**_GEMMA, "head_dim": 128, "vocab_size": 262208}),
    "gemma-3-27b, multimodal": ("gemma3", {"text_config": {**_GEMMA, "head_dim": 128}, "vision_config": _SMALL_VISION}),
}
"""What the published configuration files say."""

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-j of other width": ("gptj", {**REAL["gpt-j-6b"][1], "n_embd": 2048}),
    "mistral 7b v0.1": ("mistral", {**_LLAMA_SHAPE, "vocab_size": 32000, "max_position_embeddings": 32768}),
    "mistral nemo": ("mistral", {**_LLAMA_SHAPE, "hidden_size": 5120, "num_hidden_layers": 40, "head_dim": 128, "vocab_size": 131072}),
    "llama 3.1 8b": ("llama", {**_LLAMA_SHAPE, "vocab_size": 128256, "max_position_embeddings": 131072}),
    "llama 3.2 1b": ("llama", {**_LLAMA_SHAPE, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256}),
    "qwen2.5 7b": ("qwen2", {**_QWEN, "vocab_size": 152064, "max_position_embeddings": 131072}),
    "phi 3 medium": ("phi3", {**_PHI, "vocab_size": 32064, "max_position_embeddings": 4096}),
    "phi 4 reasoning": ("phi3", {**_PHI, "vocab_size": 100352, "max_position_embeddings": 32768, "pad_token_id": 100257}),
    "gemma 3 12b": ("gemma3_text", {**_GEMMA, "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48, "head_dim": 256}),
}


def _names(path: str, layers: range, *modules: str) -> list[str]:
    return [f"{path}.{i}.{module}" for i in layers for module in modules]


_BOTH = ("mlp.gate_proj", "mlp.up_proj")
_QWEN_LONG, _QWEN_SHORT = (_names("model.layers", range(first, 27), *_BOTH) for first in (18, 19))
_LLAMA = _names("model.layers", range(11, 16), "mlp.gate_proj") + _names("model.layers", range(18, 25), "mlp.up_proj")

PUBLISHED: dict[str, dict[str, list[str]]] = {
    "gpt-j-6b": {
        "zsre": _names("transformer.h", range(18, 27), "mlp.fc_out"),
        "wikibigedit": _names("transformer.h", range(19, 27), "mlp.fc_out"),
        "fever": _names("transformer.h", range(25, 27), "mlp.fc_out"),
    },
    "mistral-7b-v0.3": dict.fromkeys(("zsre", "fever", "wikibigedit"), _names("model.layers", range(29, 31), "mlp.down_proj")),
    "llama-3-8b-instruct": {"zsre": _LLAMA, "wikibigedit": _LLAMA, "fever": _names("model.layers", range(22, 31), *_BOTH)},
    "qwen2.5-7b-instruct": {"zsre": _QWEN_LONG, "fever": _QWEN_LONG, "wikibigedit": _QWEN_SHORT},
    "phi-4": {"zsre": _names("model.layers", range(30, 39), "mlp.down_proj")},
    "gemma-3-27b": {"wikibigedit": _names("model.layers", range(52, 61), *_BOTH)},
    "gemma-3-27b, multimodal": {"wikibigedit": _names("model.language_model.layers", range(52, 61), *_BOTH)},
}
"""The published modules; all other data sets have those of the first one named."""

SHAPES = {"fc_out": (16384, 4096), "down_proj": (14336, 4096), "gate_proj": (4096, 14336), "up_proj": (4096, 14336)}
"""Of the models with 4,096 features."""


def without_memory(family: str, values: dict[str, Any]) -> Decoder:
    with torch.device("meta"):
        return Decoder(AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values)))


@pytest.mark.parametrize("name", REAL)
def test_a_model_of_the_real_shape_gets_the_published_modules(name: str) -> None:
    decoder = without_memory(*REAL[name])
    for dataset in (*FORMATS, None):
        patterns, rate, found = resolve_settings(decoder, name, dataset=dataset)
        modules = resolve(decoder, patterns)
        published = PUBLISHED[name].get(dataset or "", next(iter(PUBLISHED[name].values())))
        assert sorted(modules) == sorted(published)
        assert rate == 1e-6
        assert found["preset"].partition("/")[0] == name.partition(",")[0]
        if decoder.config.hidden_size == 4096:
            assert all(shard_of(module).shape == SHAPES[path.rpartition(".")[2]] for path, module in modules.items())


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_of_another_shape_gets_none(name: str) -> None:
    family, values = OTHERS[name]
    config = AutoConfig.for_model(family, **{"pad_token_id": 0, **values}).get_text_config(decoder=True)
    for architecture in ("GPTJ", "Mistral", "Llama", "Qwen2", "Phi3", "Gemma3"):
        assert find_preset(config, f"{architecture}ForCausalLM") is None


@pytest.mark.parametrize("name", REAL)
def test_no_other_class_of_the_same_shape_is_taken(name: str) -> None:
    family, values = REAL[name]
    config = AutoConfig.for_model(family, **values).get_text_config(decoder=True)
    assert find_preset(config, "MixtralForCausalLM") is None


def test_published_presets_are_the_methods_defaults() -> None:
    assert (EditorConfig.edits_per_turn, EditorConfig.group_size) == (100, 10)
    published = [p for p in all_presets().values() if p.name.partition("/")[0] in REAL]
    assert len({p.name.partition("/")[0] for p in published}) == 6
    assert all(p.options == {} and p.learning_rate == 1e-6 and "2505.14679" in p.source for p in published)
    assert all(pattern.startswith("layers.") for p in all_presets().values() for pattern in p.modules)


def test_a_data_set_is_taken_by_name_and_what_is_named_wins() -> None:
    config = AutoConfig.for_model(REAL["gpt-j-6b"][0], **REAL["gpt-j-6b"][1])
    given = [
        (None, "fever"),
        ("gpt-j-6b", "fever"),
        ("gpt-j-6b/fever", "zsre"),
        ("fever", "zsre"),
        ("published", "fever"),
        ("gpt-j-6b/published", "fever"),
    ]
    found = [find_preset(config, "GPTJForCausalLM", name, dataset=dataset) for name, dataset in given]
    assert [preset.full_name for preset in found if preset] == ["gpt-j-6b/fever"] * 4 + ["gpt-j-6b/published"] * 2


def tiny(family: str, layers: int) -> TinyModel:
    """The tiny model of a family, as deep as a real one."""
    model = next(model for model in TINY if model.name == family)
    if family == "gptj":
        return replace(model, changes={**model.changes, "n_layer": layers})
    kinds = {"layer_types": ["sliding_attention", "full_attention"] * (layers // 2)} if family.startswith("gemma3") else {}
    return replace(model, changes={**model.changes, "num_hidden_layers": layers, **kinds})


@pytest.mark.parametrize("name", REAL)
def test_a_tiny_model_as_deep_as_the_real_one_is_edited_there_and_nowhere_else(name: str, tmp_path: Path) -> None:
    family, values = REAL[name]
    layers = AutoConfig.for_model(family, **values).get_text_config(decoder=True).num_hidden_layers
    tiny(family, layers).write(tmp_path)
    editor = Editor.from_pretrained(tmp_path, preset=name.partition(",")[0], learning_rate=1e-2)
    before = {path: p.clone() for path, p in editor.model.named_parameters()}
    editor.apply([EditRequest(prompt=f"The colour of number {i} is", target=f"blue {i}") for i in range(4)], measure=False)
    changed = [path for path, p in editor.model.named_parameters() if not torch.equal(p, before[path])]
    assert sorted(changed) == sorted(f"{path}.weight" for path in next(iter(PUBLISHED[name].values())))
    assert Editor.from_pretrained(tmp_path).config.preset == unmeasured.NAME  # by itself it is none of those models


def test_a_model_within_a_budget_is_planned_and_edited_with_the_data_sets_modules(tmp_path: Path) -> None:
    tiny("gptj", 28).write(tmp_path)
    spec = WorkerSpec(model=str(tmp_path), preset="gpt-j-6b", dataset="fever", options={}, device_memory="8GiB")
    engine = StreamedEngine(spec, torch.device("cpu"))
    editor = engine.load()
    assert (editor.config.preset, list(editor.modules)) == ("gpt-j-6b/fever", PUBLISHED["gpt-j-6b"]["fever"])
    assert engine.plan.start == editor.start == 25
    engine.close()
