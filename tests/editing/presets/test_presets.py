"""A preset carries the method's options; a variant is taken by name; what is given explicitly wins."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import LlamaConfig

from editing import Editor, InputError, presets
from editing.config import MethodOptions
from editing.presets import Preset, all_presets, find_preset
from tests.support.small_editor import MODEL, MODULES


@dataclass
class Config:
    hidden_size: int = 640
    num_hidden_layers: int = 18


GEMMA = (Config(), "Gemma3ForCausalLM")


def test_variants_share_what_they_do_not_change() -> None:
    known = all_presets()
    published = known["gemma-3-270m/published"]
    assert published.options == {}
    assert (published.learning_rate, published.modules) == (1.5e-4, ("layers.{12..15}.self_attn.o_proj",))
    refined = known["gemma-3-270m/refined"]
    assert refined.options["passes"] > 1
    assert refined.match == published.match
    assert all(set(preset.options) <= set(MethodOptions.names()) for preset in known.values())


def test_a_preset_is_found_by_model_by_name_and_by_variant() -> None:
    default = find_preset(*GEMMA)
    assert default == find_preset(None, "", "gemma-3-270m") is not None
    for variant in ("published", "refined"):
        found = find_preset(*GEMMA, variant)
        assert found is not None
        assert found.variant == variant
        assert find_preset(None, "", f"gemma-3-270m/{variant}").options == found.options
    assert find_preset(Config(hidden_size=1), "Gemma3ForCausalLM", "refined") is None
    with pytest.raises(InputError, match=r"found none named 'refind'.*refined"):
        find_preset(*GEMMA, "refind")


@pytest.fixture
def for_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset of the tiny Llama whose default is refined."""
    values = {"modules": list(MODULES), "learning_rate": 1e-3, "source": "this test", "match": {"hidden_size": 64}}
    variants = {"variants": {"refined": {"passes": 3, "preserve": "exact", "learning_rate": 2e-3}}, "default": "refined"}
    made: dict[str, Preset] = {preset.name: preset for preset in presets._read("tiny", {**values, **variants})}
    monkeypatch.setattr(presets, "all_presets", lambda: made)


def test_the_small_chat_model_is_told_from_the_version_before_it() -> None:
    config = LlamaConfig(hidden_size=576, num_hidden_layers=30, max_position_embeddings=8192)
    found = find_preset(config, "LlamaForCausalLM")
    assert found is not None
    assert found.full_name == "smollm2-135m/refined"
    solved = find_preset(config, "LlamaForCausalLM", "solved")
    assert solved is not None
    assert solved.options["subject_targets"] == "solved"
    assert find_preset(LlamaConfig(hidden_size=576, num_hidden_layers=30, max_position_embeddings=2048), "LlamaForCausalLM") is None


def test_an_editor_takes_the_presets_options_and_explicit_ones_win(for_llama: None) -> None:
    default, published = Editor.from_pretrained(MODEL), Editor.from_pretrained(MODEL, preset="published")
    assert (default.config.passes, default.config.preserve, default.config.learning_rate) == (3, "exact", 2e-3)
    assert (published.config.passes, published.config.preserve, published.config.answer_end) == (1, "off", "none")
    assert published.config.learning_rate == 1e-3
    own = Editor.from_pretrained(MODEL, preset="refined", passes=2, learning_rate=5e-4)
    assert (own.config.passes, own.config.preserve, own.config.learning_rate) == (2, "exact", 5e-4)
    plain = Editor.from_pretrained(MODEL, modules=MODULES, learning_rate=1e-3)  # nothing is left to ask a preset for
    assert plain.config.passes == 1


def test_a_variant_that_the_model_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no preset 'refined' fits this model"):
        Editor.from_pretrained(MODEL, modules=MODULES, learning_rate=1e-3, preset="refined")
