"""A module is named by where it lies in the decoder's list of layers, whatever stands around that list."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from editing import InputError
from editing.model.decoder import Decoder
from editing.model.modules import resolve
from tests.support.families import FAMILIES, tiny_model
from tests.support.tiny_models import TINY


@pytest.fixture(scope="module")
def multimodal() -> Decoder:
    case = next(model for model in TINY if model.name == "gemma3")
    torch.manual_seed(0)
    return Decoder(AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3", **case._config())))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_part_before_the_layers_may_be_left_out_or_be_another_versions(family: str) -> None:
    model, names = tiny_model(family)
    decoder = Decoder(model)
    tail = names[0].removeprefix(decoder.layers_path)
    for prefix in ("layers", "model.layers", "model.language_model.layers", "language_model.model.layers", decoder.layers_path):
        assert list(resolve(decoder, [prefix + tail])) == names[:1]


@pytest.mark.parametrize("prefix", ["layers", "model.layers", "language_model.model.layers", "language_model.layers", "model.language_model.layers"])
def test_a_multimodal_checkpoints_language_model_is_meant(multimodal: Decoder, prefix: str) -> None:
    modules = resolve(multimodal, [prefix + ".{1,2}.mlp.gate_proj"])
    assert list(modules) == [f"model.language_model.layers.{i}.mlp.gate_proj" for i in (1, 2)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1", "no module"),  # as in another version
        ("model.vision_tower.encoder.layers.1.self_attn.q_proj", "no module|outside"),
        ("vision_tower.layers.1.self_attn.q_proj", "no module"),  # the language model has such a module
        ("layers.1.mlp.gate", "did you mean model.language_model.layers.1.mlp.gate_proj"),
        ("layers.9.mlp.gate_proj", "no module 'layers.9.mlp.gate_proj'"),
        ("1.mlp.gate_proj", "no module"),
        ("layers.1.mlp", "is a .*MLP, expected a Linear"),
    ],
)
def test_what_is_no_module_of_the_language_model_is_refused(multimodal: Decoder, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        resolve(multimodal, [name])


def test_two_names_of_one_module_are_refused(multimodal: Decoder) -> None:
    with pytest.raises(InputError, match=r"model\.language_model\.layers\.1\.mlp\.up_proj is named twice"):
        resolve(multimodal, ["layers.1.mlp.up_proj", "language_model.model.layers.1.mlp.up_proj"])
