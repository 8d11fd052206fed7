"""Perplexity of the text that nothing holds is that of the plain model, passage by passage, before the edits and after."""

from pathlib import Path

import pytest
import torch

from editing import Editor, InputError, reference_text
from editing.model.tokenization import AnswerSequence
from editing.monitoring import held_out
from editing.monitoring.held_out import perplexities, perplexity_of, read_passages, tokenized
from editing.reference_text import read_text
from editing.turn import in_turns
from tests.support.small_editor import editor, edits_with_probes

PASSAGES = ["The tide comes in twice a day.", "A lever gives nothing for nothing.", "Short."]


@pytest.fixture(autouse=True)
def whole_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which other tests measure the beginning."""
    monkeypatch.setattr(held_out, "passages_in", reference_text.passages_in)


def plain(one: Editor, model: torch.nn.Module) -> float:
    """By transformers' own loss, one passage at a time."""
    losses, tokens = 0.0, 0
    for passage in PASSAGES:
        ids = torch.tensor([one.tokenizer(passage)["input_ids"]])
        with torch.no_grad():
            losses += float(model(input_ids=ids, labels=ids).loss.double()) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return float(torch.tensor(losses / tokens).exp())


def test_it_is_that_of_the_plain_model_before_and_after() -> None:
    one = editor()
    before = plain(one, one.model)
    (prepared,) = one.prepare([next(in_turns(edits_with_probes(one), 6))])
    one.apply_turn(prepared)
    after = plain(one, one.model)
    assert perplexities(one, PASSAGES) == pytest.approx((before, after), rel=1e-5)
    assert abs(after / before - 1) > 1e-4
    assert perplexity_of(one.decoder, one.joiner, PASSAGES, batch_tokens=64) == pytest.approx(after, rel=1e-5)


def test_a_long_passage_is_cut_and_every_token_but_the_first_of_a_piece_is_asked_once() -> None:
    one = editor()
    ids = tuple(one.joiner.as_typed.prompt_ids(PASSAGES[1]))
    pieces = tokenized(one.joiner, [PASSAGES[1]], 5)
    assert pieces == [AnswerSequence(ids[a : a + 5][:-1], ids[a : a + 5][1:]) for a in range(0, len(ids) - 1, 5)]
    assert all(len(piece.input_ids) == len(piece.answer_ids) <= 4 for piece in pieces)


def test_the_shipped_text_is_long_of_many_kinds_and_is_not_what_a_ridge_preserves() -> None:
    passages = read_passages("held-out")
    assert len(passages) >= 20
    assert sum(len(passage.split()) for passage in passages) > 4_200  # over 5,000 tokens of the usual tokenizers
    sentences = {sentence.strip() for passage in passages for sentence in passage.split(". ")}
    assert not sentences & {sentence.strip() for sentence in read_text("everyday").replace("\n", " ").split(". ")}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory; expected a text file, held-out or none"),
        (b"  \n", "is empty; expected passages with empty lines between them"),
        (b"\xff\xfe", "is no UTF-8 text (byte 0); expected passages with empty lines between them"),
    ],
    ids=["missing", "empty", "no text"],
)
def test_a_text_that_cannot_be_read_is_one_line(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_passages(str(path))
    assert str(error.value) == f"perplexity_text: {path}: {said}"
