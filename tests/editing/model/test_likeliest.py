"""The likeliest token and the loss, found in blocks of words, are those of all logits."""

from pathlib import Path

import pytest
import torch

from editing.files import pretrained
from editing.model import decoder as decoding
from editing.model.decoder import Decoder
from tests.support.tiny_models import GPT2, TINY, TinyModel


def _forty_rows(model: TinyModel, folder: Path) -> tuple[Decoder, torch.Tensor]:
    model.write(folder)
    decoder = Decoder(pretrained.load(folder, device=torch.device("cpu"))[0])
    return decoder, torch.randn(40, decoder.config.hidden_size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block", [1, 10, 96, 97, 4096])
@pytest.mark.parametrize("model", [*TINY, GPT2], ids=lambda m: m.name)
def test_blocks_of_words_give_the_token_of_all_logits(model: TinyModel, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, rows = _forty_rows(model, tmp_path)
    monkeypatch.setattr(decoding, "HEAD_BLOCK", block)
    expected = decoder.logits(rows).argmax(-1)
    assert torch.equal(decoder.likeliest(rows), expected)
    assert len(expected.unique()) > 3


@pytest.mark.parametrize("block", [1, 10, 97, 4096])
@pytest.mark.parametrize("model", [*TINY, GPT2], ids=lambda m: m.name)
def test_blocks_of_words_give_the_losses_of_all_logits(model: TinyModel, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, rows = _forty_rows(model, tmp_path)
    monkeypatch.setattr(decoding, "HEAD_BLOCK", block)
    with torch.no_grad():
        logits = decoder.logits(rows)
        labels = torch.where(torch.arange(40) % 2 == 0, logits.argmax(-1), torch.arange(40) % logits.shape[1])
        losses, right = decoder.losses(rows, labels)
    expected = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    assert torch.allclose(losses.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(right, logits.argmax(-1) == labels)
    assert 20 <= int(right.sum()) < 40


def test_the_first_of_several_tokens_that_are_alike_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TINY[1].write(tmp_path)
    decoder = Decoder(pretrained.load(tmp_path, device=torch.device("cpu"))[0])
    monkeypatch.setattr(decoding, "HEAD_BLOCK", 10)
    with torch.no_grad():
        decoder.head.weight.zero_()
    assert decoder.likeliest(torch.randn(3, decoder.config.hidden_size)).tolist() == [0, 0, 0]
