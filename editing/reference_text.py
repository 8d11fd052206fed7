"""The reference text: text that no edit is about, whose keys the preserving ridge knows before the first edit.

Prompts of edits are all alike. A ridge that has seen nothing else lets a shift change freely what the model does with other text.
A few thousand tokens of other text are enough to hold that back (docs/LOG.md, "Everyday text"). This room reads the text and cuts
it into token sequences; :mod:`editing.model.token_keys` runs the model over them.
"""

import hashlib
from collections.abc import Mapping
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

_SHIPPED = {EVERYDAY: "passages.txt"}

_EXPECTED = "expected passages with empty lines between them"


@dataclass(frozen=True, slots=True)
class ReferenceText:
    """A text as it was read.

    Attributes:
        sha256: Digest of the text, or ``none`` if there is no text.
        passages: Its passages as token sequences.
    """

    sha256: str = NONE
    passages: list[AnswerSequence] = field(default_factory=list)

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
        return cls(hashlib.sha256(text.encode()).hexdigest(), _passages(Joiner.of(tokenizer), text, max_tokens)) if text else cls()


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


def _passages(joiner: Joiner, text: str, max_tokens: int | None) -> list[AnswerSequence]:
    width = min(_MAX_TOKENS, max_tokens or _MAX_TOKENS)
    pieces: list[AnswerSequence] = []
    for passage in passages_in(text):
        ids = joiner.as_typed.prompt_ids(passage)
        pieces += [AnswerSequence(tuple(ids[a : a + width]), (0,)) for a in range(0, len(ids), width)]
    return pieces
