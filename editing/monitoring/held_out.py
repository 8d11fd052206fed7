"""Perplexity of a text that nothing holds in place: no edit is about it, and no ridge preserves it.

The text that ships with the project has 24 passages of as many kinds: descriptions, instructions, talk, letters, news, code, a proof, a diary, rules,
a glossary, minutes, a forecast. They were written for this purpose and are dedicated to the public domain (CC0). They have about 5,300 tokens: a text
of a hundred words cannot tell a growth of two hundredths from chance.
"""

from collections.abc import Sequence

from editing.config import HELD_OUT
from editing.editor import Editor
from editing.model.decoder import Decoder
from editing.model.joining import Joiner
from editing.model.prefix import Prefixed, perplexity
from editing.model.tokenization import AnswerSequence
from editing.reference_text import passages_in, read_text

_MAX_TOKENS = 1024
"""Tokens of a passage; a longer one is cut into several."""


def read_passages(source: str) -> list[str]:
    """Passages of the shipped text, ``held-out``, of ``none``, or of a UTF-8 file with empty lines between them.

    Raises:
        InputError: There is no such file, or it is no text.
    """
    return passages_in(read_text(source, option="perplexity_text", shipped={HELD_OUT: "held_out.txt"}))


def tokenized(joiner: Joiner, passages: Sequence[str], max_tokens: int | None) -> list[AnswerSequence]:
    """Passages as sequences in which every token but the first is predicted; none sees another one."""
    width = min(_MAX_TOKENS, max_tokens or _MAX_TOKENS)
    pieces: list[AnswerSequence] = []
    for passage in passages:
        ids = tuple(joiner.as_typed.prompt_ids(passage))
        cut = (ids[a : a + width] for a in range(0, len(ids) - 1, width))
        pieces += [AnswerSequence(piece[:-1], piece[1:]) for piece in cut]
    return pieces


def perplexities(editor: Editor, passages: Sequence[str], known: float | None = None) -> tuple[float, float]:
    """Perplexity over all tokens of all passages: of the unedited model, and of the model as it is now. The frozen layers run once for both.

    Args:
        editor: The editor.
        passages: The passages.
        known: That of the unedited model, where it is known.
    """
    prefixed = editor.run_prefix(tokenized(editor.joiner, passages, editor.decoder.max_tokens), dtype="same")

    def measure() -> float:
        return perplexity(editor.decoder, prefixed, start=editor.start, batch_tokens=editor.config.batch_tokens)

    if known is not None:
        return known, measure()
    with editor.unedited():
        before = measure()
    return before, measure()


def perplexity_of(decoder: Decoder, joiner: Joiner, passages: Sequence[str], *, batch_tokens: int) -> float:
    """The same of a model that nobody edits here."""
    sequences = tokenized(joiner, passages, decoder.max_tokens)
    return perplexity(decoder, Prefixed(sequences, None), start=0, batch_tokens=batch_tokens)
