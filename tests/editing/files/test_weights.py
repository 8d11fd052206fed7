"""Weights on disk are found under their names in memory, refused where they are not the model's, and copied faithfully."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from editing import ModelError
from editing.files import pretrained
from editing.files.weights import WeightFiles
from tests.support.families import tiny_model
from tests.support.tiny_models import GPT2, TINY

MULTIMODAL = next(model for model in TINY if model.family == "gemma3")


def skeleton(folder: Path) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    (path,) = folder.glob("*.safetensors")
    merged = {**load_file(path), **tensors}
    save_file({k: t for k, t in merged.items() if t is not None}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("model", [*(m for m in TINY if m.name in ("gptj", "llama", "phi3", "gemma3_text", "gemma3")), GPT2], ids=lambda m: m.name)
def test_every_parameter_is_found_as_transformers_loads_it(model, tmp_path: Path) -> None:
    model.write(tmp_path)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path)
    with WeightFiles(tmp_path, skeleton(tmp_path)) as files:
        found = dict(files.whole())
        assert files.shapes == {name: tuple(p.shape) for name, p in expected.named_parameters()}
        assert pretrained.fingerprint(files.whole()) == pretrained.fingerprint(expected.named_parameters())
    for name, parameter in expected.named_parameters():
        assert torch.equal(found[name], parameter), name


def test_older_names_and_tied_heads_are_found(tmp_path: Path) -> None:
    MULTIMODAL.write(tmp_path)
    with WeightFiles(tmp_path, skeleton(tmp_path)) as files:
        name = "model.language_model.layers.1.mlp.gate_proj.weight"
        assert files.key(name) != name
        assert files.key("lm_head.weight") == files.key("model.language_model.embed_tokens.weight")


@pytest.mark.parametrize("wrong", [None, torch.zeros(3, 5)], ids=["missing", "of another shape"])
def test_a_weight_that_is_not_the_models_is_one_clear_line(wrong: torch.Tensor | None, tmp_path: Path) -> None:
    model, _ = tiny_model("llama")
    model.save_pretrained(tmp_path)
    change(tmp_path, **{"model.layers.2.mlp.up_proj.weight": wrong})
    with pytest.raises(ModelError, match=r"1 weights are missing or of a wrong shape .*layers\.2\.mlp\.up_proj"):
        WeightFiles(tmp_path, skeleton(tmp_path))
