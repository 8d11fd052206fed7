"""What generated text says of an answer, told without a model as a judge.

    begins      the text begins with the answer
    contained   the answer stands in the text
    exact       the text is the answer and nothing else, and the model ended it by itself
    stopped     the model ended the text by itself, within the tokens that it was given
    repeats     the text says the same words three times running

Answers are compared as whole words, without the blanks at their edges, with one blank for any number of them, in composed letters.
``contained`` and ``exact`` leave capitals aside, and ``exact`` the punctuation at the end.

``begins`` forgives what comes after the answer, and ``contained`` what comes before it too: "Not Lyon" contains Lyon. ``exact`` forgives
nothing, so it finds right answers wrong that are put into a sentence. What a person sees lies between ``exact`` and ``contained``.
"""

import unicodedata
from dataclasses import dataclass

from editing.blanks import bare, ends_word
from editing.model.generation import Written

_TIMES = 3
"""How often running a text says the same before it counts as repeated."""


RAW_TOKENS = 12
"""Tokens that are written after a prompt as it is typed, where a model that is no chat model seldom comes to an end."""

CHAT_TOKENS = 32
"""Tokens in which an answer in chat has to come to its end."""

_ASKED, _ALONE = ("exact", "contained", "begins"), ("stopped", "repeats")

VERDICTS = (*_ASKED, *(f"rephrased_{name}" for name in _ASKED), *_ALONE, *(f"{name}_before" for name in (*_ASKED, *_ALONE)))
"""What is said of :class:`Answers`."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model wrote for one edit, asked in one framing.

    Attributes:
        after: After the edit's prompt.
        rephrased: After its rephrased prompt, if it has one.
        before: What the unedited model wrote after the prompt, if it was asked.
    """

    after: Written
    rephrased: Written | None = None
    before: Written | None = None

    def verdicts(self, answer: str) -> dict[str, bool | None]:
        """:data:`VERDICTS`; those named ``..._before`` are of the unedited model's text."""
        rephrased = {f"rephrased_{name}": value for name, value in _asked(self.rephrased, answer).items()}
        before = {f"{name}_before": value for name, value in (_asked(self.before, answer) | _alone(self.before)).items()}
        return _asked(self.after, answer) | rephrased | _alone(self.after) | before


def _asked(written: Written | None, answer: str) -> dict[str, bool | None]:
    if written is None:
        return dict.fromkeys(_ASKED)
    exact = written.stopped and _folded(written.text) == _folded(answer)
    return {"exact": exact, "contained": contains(written.text, answer), "begins": begins_with(written.text, answer)}


def _alone(written: Written | None) -> dict[str, bool | None]:
    return {"stopped": None, "repeats": None} if written is None else {"stopped": written.stopped, "repeats": repeats(written.text)}


def begins_with(text: str, answer: str) -> bool:
    """Whether a text begins with an answer, as whole words."""
    text, answer = _plain(text), _plain(answer)
    return text.startswith(answer) and ends_word(answer, text[len(answer) : len(answer) + 1])


def contains(text: str, answer: str) -> bool:
    """Whether an answer stands in a text, as whole words, in capitals or not."""
    text, answer = _plain(text).casefold(), _plain(answer).casefold()
    at = text.find(answer)
    while at >= 0:
        after = at + len(answer)
        if ends_word(answer, text[after : after + 1]) and ends_word(answer[:1], text[max(0, at - 1) : at]):
            return True
        at = text.find(answer, at + 1)
    return False


def repeats(text: str) -> bool:
    """Whether a text says the same words three times running."""
    words = _plain(text).split()
    spans = range(1, len(words) // _TIMES + 1)
    return any(words[i : i + n] * _TIMES == words[i : i + n * _TIMES] for n in spans for i in range(len(words) - n * _TIMES + 1))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", bare(text)).split())


def _folded(text: str) -> str:
    """A text without capitals and without the punctuation at its end."""
    text = _plain(text).casefold()
    while text and unicodedata.category(text[-1]).startswith("P"):
        text = bare(text[:-1])
    return text
