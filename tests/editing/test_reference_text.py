"""The reference text is read, named by its digest, and cut into passages that the model's context holds."""

import hashlib
from pathlib import Path

import pytest

from editing import InputError
from editing.config import MethodOptions
from editing.model.joining import Joiner
from editing.reference_text import ReferenceText, read_text, sentences_in
from tests.support.small_editor import editor


class WordTokenizer:
    """A token a word."""

    def __call__(self, text: str, **_: bool) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}


def reference(source: str, max_tokens: int | None = None, preserve: str = "exact") -> ReferenceText:
    return ReferenceText.of(MethodOptions(preserve=preserve, preserve_text=source), WordTokenizer(), max_tokens)


@pytest.mark.parametrize(("source", "preserve"), [("none", "exact"), ("everyday", "off"), ("/no/such/file", "off")])
def test_a_text_that_is_not_preserved_is_not_read(source: str, preserve: str) -> None:
    assert reference(source, preserve=preserve) == ReferenceText("none", [])


def test_its_digest_is_that_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("äpfel", encoding="utf-8")
    assert reference(str(tmp_path / "a")).sha256 == hashlib.sha256("äpfel".encode()).hexdigest()
    assert reference("everyday").sha256 == hashlib.sha256(read_text("everyday").encode()).hexdigest()


@pytest.mark.parametrize(("max_tokens", "lengths"), [(None, [2, 512, 88, 1]), (400, [2, 400, 200, 1]), (1000, [2, 512, 88, 1])])
def test_a_passage_that_is_too_long_is_cut_and_an_empty_one_left_out(max_tokens: int | None, lengths: list[int], tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one two\n\n" + "word " * 600 + "\n\n \n\n\n\nlast", encoding="utf-8")
    assert [len(s.input_ids) for s in reference(str(tmp_path / "a"), max_tokens).passages] == lengths


def test_everyday_text_has_a_few_thousand_tokens_of_a_real_tokenizer() -> None:
    one = editor()
    text = ReferenceText.of(MethodOptions(preserve="exact", preserve_text="everyday"), one.tokenizer, None)
    assert 1000 < sum(len(s.input_ids) for s in text.passages) < 100_000


def test_its_sentences_are_asked_in_every_framing_but_the_raw_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("It rains. Does it?\nYes!\n\n雨が降る。そうだ", encoding="utf-8")
    assert sentences_in(read_text(str(tmp_path / "a"))) == ["It rains.", "Does it?", "Yes!", "雨が降る。", "そうだ"]
    joiner = Joiner(editor().tokenizer, framings=("raw", "question", "So: {prompt}"))
    options = {"preserve": "exact", "preserve_text": str(tmp_path / "a")}
    framed = ReferenceText.of(MethodOptions(**options), joiner, None).passages
    plain = ReferenceText.of(MethodOptions(**options, preserve_framed=False), joiner, None).passages
    asked = [joiner.framed(f).prompt_ids(s) for f in ("question", "So: {prompt}") for s in sentences_in(read_text(str(tmp_path / "a")))]
    assert [sequence.input_ids for sequence in framed] == [*(sequence.input_ids for sequence in plain), *asked]
    assert len(plain) == 2
    raw = Joiner(editor().tokenizer)
    assert ReferenceText.of(MethodOptions(**options), raw, None).passages == plain


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file.*expected a text file, everyday or none"), (b" \n", "is empty"), (b"caf\xe9", "no UTF-8 text .byte 3.")],
)
def test_what_is_no_text_is_one_line(content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match=f"preserve_text: {tmp_path}/a: .*{words}"):
        read_text(str(tmp_path / "a"))
