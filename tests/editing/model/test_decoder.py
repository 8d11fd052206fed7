"""Prefix, suffix and head are the model, in every family."""

import pytest
import torch

from editing.errors import ModelError
from editing.model.decoder import Decoder
from tests.support.families import FAMILIES, tiny_model


@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_halves_give_the_models_logits(family: str, start: int) -> None:
    model, _ = tiny_model(family)
    decoder = Decoder(model)
    input_ids = torch.randint(3, 97, (3, 9))
    with torch.no_grad():
        expected = model(input_ids=input_ids).logits
        hidden = decoder.prefix(input_ids, start) if start else None
        found = decoder.logits(decoder.suffix(input_ids, hidden, start))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padding_without_a_mask_changes_no_real_position(family: str) -> None:
    model, _ = tiny_model(family)
    decoder = Decoder(model)
    short = torch.randint(3, 97, (1, 5))
    padded = torch.cat((short, torch.zeros(1, 6, dtype=torch.long)), dim=1)
    with torch.no_grad():
        torch.testing.assert_close(decoder.prefix(padded, 2)[:, :5], decoder.prefix(short, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_runs_whole_again_afterwards(family: str) -> None:
    model, _ = tiny_model(family)
    input_ids = torch.randint(3, 97, (2, 7))
    with torch.no_grad():
        expected = model(input_ids=input_ids).logits
        Decoder(model).prefix(input_ids, 2)
        assert torch.equal(model(input_ids=input_ids).logits, expected)


def test_prefix_layers_do_not_run_in_the_suffix() -> None:
    model, _ = tiny_model("llama")
    decoder = Decoder(model)
    input_ids = torch.randint(3, 97, (1, 4))
    hidden = decoder.prefix(input_ids, 2)
    ran: list[int] = []
    for i, layer in enumerate(decoder.layers):
        layer.mlp.register_forward_hook(lambda *_, i=i: ran.append(i))
    decoder.suffix(input_ids, hidden, 2)
    assert ran == [2, 3]


def test_verify_refuses_a_family_that_does_more_than_its_parts() -> None:
    model, _ = tiny_model("llama")
    plain = model.forward

    def scaled(*args: object, **kwargs: object) -> object:
        output = plain(*args, **kwargs)
        output.logits = output.logits * 2  # as families with a logit scale do
        return output

    model.forward = scaled
    with pytest.raises(ModelError, match="not supported"):
        Decoder(model).verify()


def test_layer_of_reads_the_index_and_refuses_what_is_outside() -> None:
    decoder = Decoder(tiny_model("gptj")[0])
    assert decoder.layer_of("transformer.h.3.mlp.fc_out") == 3
    with pytest.raises(ModelError, match="outside the decoder layers"):
        decoder.layer_of("lm_head")
