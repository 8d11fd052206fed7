"""The reference text: text that no edit is about, whose keys the preserving ridge knows before the first edit.

Prompts of edits are all alike. A ridge that has seen nothing else lets a shift change freely what the model does with other text.
A few thousand tokens of other text are enough to hold that back (docs/LOG.md, "Everyday text"). A chat is another kind of text: where edits
are written in chats, sentences of the text are asked in chats too. This room reads the text and cuts it into token sequences;
:mod:`editing.model.token_keys` runs the model over them.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from editing.config import EVERYDAY, NONE, MethodOptions
from editing.errors import InputError
from editing.model.joining import Joiner
from editing.model.tokenization import AnswerSequence

_MAX_TOKENS = 512
"""Tokens of a passage; a longer one is cut into several."""

PREDICTED_TOKENS = 1024
"""Enough for the directions in which the text is most sensitive; each costs a row of the head, forward and back."""

_SHIPPED = {EVERYDAY: "passages.txt"}

_ENDS_OF_SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")

_EXPECTED = "expected passages with empty lines between them"


@dataclass(frozen=True, slots=True)
class ReferenceText:
    """A text as it was read.

    Attributes:
        sha256: Digest of the text, or ``none`` if there is no text.
        passages: Its passages as token sequences, and its sentences in each framing but the raw one.
        predicted: Its passages, each with its last tokens to be predicted, about :data:`PREDICTED_TOKENS` in all.
    """

    sha256: str = NONE
    passages: list[AnswerSequence] = field(default_factory=list)
    predicted: list[AnswerSequence] = field(default_factory=list)

    @classmethod
    def of(cls, options: MethodOptions, tokenizer: Any, max_tokens: int | None) -> "ReferenceText":
        """The text that the options name; none if the ridge does not preserve.

        Args:
            options: Options of the method.
            tokenizer: The model's joiner, or its tokenizer.
            max_tokens: The model's context length, or ``None`` for no limit.

        Raises:
            InputError: The text cannot be read.
        """
        text = read_text(options.preserve_text) if options.preserves_text else ""
        if not text:
            return cls()
        joiner, width = Joiner.of(tokenizer), min(_MAX_TOKENS, max_tokens or _MAX_TOKENS)
        asked = _asked(joiner, text, width) if options.preserve_framed else []
        passages = _passages(joiner, text, width)
        return cls(hashlib.sha256(text.encode()).hexdigest(), passages + asked, _predicted(passages))


def read_text(source: str, *, option: str = "preserve_text", shipped: Mapping[str, str] = _SHIPPED) -> str:
    """The text of a name or of a UTF-8 file; empty for ``none``.

    Args:
        source: The name or the file.
        option: The option that has it, for messages.
        shipped: Files that come with the project, by the names that may be given.

    Raises:
        InputError: There is no such file, or it is not text.
    """
    if source == NONE:
        return ""
    if source in shipped:
        return resources.files("editing.probes").joinpath(shipped[source]).read_text(encoding="utf-8")
    try:
        text = Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{option}: {source}: {error.strerror or error}; expected a text file, {', '.join(shipped)} or {NONE}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{option}: {source}: is no UTF-8 text (byte {error.start}); {_EXPECTED}") from None
    if not text.strip():
        raise InputError(f"{option}: {source}: is empty; {_EXPECTED}")
    return text


def passages_in(text: str) -> list[str]:
    """What stands between empty lines."""
    return [passage.strip() for passage in text.split("\n\n") if passage.strip()]


def sentences_in(text: str) -> list[str]:
    """Its sentences, passage by passage."""
    return [sentence for passage in passages_in(text) for sentence in _ENDS_OF_SENTENCES.split(passage) if sentence]


def _asked(joiner: Joiner, text: str, width: int) -> list[AnswerSequence]:
    """Each sentence in each framing but the raw one, up to where the answer would begin; one that is too long is left out."""
    framed = [form for form in joiner.forms if form is not joiner]
    prompts = [form.prompt_ids(sentence) for form in framed for sentence in sentences_in(text)]
    return [AnswerSequence(ids, (0,)) for ids in prompts if len(ids) <= width]


def _predicted(passages: Sequence[AnswerSequence]) -> list[AnswerSequence]:
    long = [passage.input_ids for passage in passages if len(passage.input_ids) > 1]
    each = -(-PREDICTED_TOKENS // max(1, len(long)))
    return [AnswerSequence(ids[:-1], ids[max(1, len(ids) - each) :]) for ids in long]


def _passages(joiner: Joiner, text: str, width: int) -> list[AnswerSequence]:
    pieces: list[AnswerSequence] = []
    for passage in passages_in(text):
        ids = joiner.as_typed.prompt_ids(passage)
        pieces += [AnswerSequence(tuple(ids[a : a + width]), (0,)) for a in range(0, len(ids), width)]
    return pieces
