"""Where blanks stand: at the edges of a text, and between a prompt and its answer. The rule, as everything here follows it:

edges    Blanks at the edges of a prompt or an answer are no part of it (:func:`bare`): ``"is "`` asks what ``"is"`` asks, and
         ``" Lyon\\n"`` answers what ``"Lyon"`` answers. Blanks are what Unicode calls so, line breaks among them, and three
         characters that cannot be seen. Blanks inside a text stay.
breaks   A line break at the end of a prompt is how the answer is asked for, so it stays before the answer (:func:`as_read`).
between  One blank (:func:`between`), but none
           - after a line break;
           - after an opening bracket or quotation mark, and before a closing bracket;
           - after a letter of a script that sets no blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan
             and some more; not Korean), or its punctuation, and before its punctuation;
           - after other punctuation or digits, where the last letter before them and the first one of the answer are of such scripts.
"""

import re
import unicodedata
from collections.abc import Iterable

BLANKS = "".join(c for c in map(chr, range(0x3001)) if c.isspace()) + "\u200b\u2060\ufeff"
"""Characters that are no part of a text at its edges: Unicode's blanks, zero-width space, word joiner, byte-order mark."""

_NO_BLANKS = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u109f"  # Tibetan, Burmese
    "\u1780-\u17ff\u19e0-\u19ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf"  # Tai Le, New Tai Lue, Tai Tham
    "\u1b00-\u1b7f\ua980-\ua9ff\uaa60-\uaa7f"  # Balinese, Javanese, more Burmese
    "\u2e80-\u312f\u3190-\ua4cf"  # radicals, kana, Bopomofo, Han, Yi, and the punctuation of these
    "\uf900-\ufaff\ufe10-\ufe1f\ufe30-\ufe4f\uff01-\uff9f"  # Han and punctuation in other forms, half-width kana
    "\U0001aff0-\U0001b16f\U00020000-\U0003ffff"  # more kana, more Han
    "]"
)


def bare(text: str) -> str:
    """A text without the blanks at its edges: what two texts are compared by."""
    return text.strip(BLANKS)


def as_read(prompt: str) -> str:
    """A prompt without the blanks at its edges, but with the line break that it ends in."""
    text = prompt.lstrip(BLANKS)
    core = text.rstrip(BLANKS)
    end = text[len(core) :]
    return core + end[: end.rfind("\n") + 1]


def between(prompt: str, answer: str) -> str:
    """What stands between a prompt and its answer: one blank, or nothing.

    Args:
        prompt: As :func:`as_read` gives it.
        answer: As :func:`bare` gives it.
    """
    last, first = prompt[-1:], answer[:1]
    if not last or last == "\n" or _opens(prompt) or unicodedata.category(first or " ") == "Pe":
        return ""
    if joins_words(last) or (joins_words(first) and not first.isalnum()):
        return ""
    return "" if joins_words(_letter(reversed(prompt))) and joins_words(_letter(answer)) else " "


def joins_words(character: str) -> bool:
    """Whether a character is of a script that sets no blanks between words, or its punctuation; an empty text is not."""
    return bool(_NO_BLANKS.match(character))


def ends_word(text: str, following: str) -> bool:
    """Whether a text is whole where it ends, given the character after it, or nothing: no word goes on there."""
    if not following or joins_words(text[-1:]) or joins_words(following):
        return True
    return not (following.isalnum() or unicodedata.category(following).startswith("M"))


def _opens(prompt: str) -> bool:
    last, before = prompt[-1:], prompt[-2:-1]
    if last in ("'", '"'):  # which open after a blank or a bracket, and else close
        return not before or before in BLANKS or unicodedata.category(before) in ("Ps", "Pi")
    return unicodedata.category(last) in ("Ps", "Pi") or last in "¿¡"


def _letter(characters: Iterable[str]) -> str:
    return next((c for c in characters if unicodedata.category(c).startswith("L")), "")
