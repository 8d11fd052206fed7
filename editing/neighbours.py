"""Neighbours of an edit: its prompt about other subjects, which the edit is not about and must not change.

    "The mother tongue of Danielle Darrieux is" -> "English"      the edit
    "The mother tongue of Norway is"                              a neighbour: whatever the model says there, it goes on saying

What a shift moves at the end of a prompt depends on the prompt's words far more than on its subject. A text that no edit is about holds none of
these words, so it cannot hold the shift back there (docs/LOG.md, "Neighbours"). The other subjects are well-known names, which ship with the
project: those that are most alike the edit's own (:mod:`editing.alike`), for they are what a shift changes first; or one after another of a few
of several kinds. A name need not suit the prompt: what is held is the model's state where the answer would begin, not a fact.

Differences from the published implementation
    * It has none. Off by default.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from zlib import crc32

from editing.alike import read_names
from editing.errors import InputError, InvalidRequest
from editing.model.joining import Joiner
from editing.model.tokenization import AnswerSequence, encode
from editing.requests import EditRequest
from editing.subjects import likely_subject, subject_span
from editing.turn import Turn

_COMMON_WORDS = {"the", "of"}

Alike = Callable[[Sequence[str]], list[list[str]]]
"""Of each subject, well-known names, the likest first."""


@cache
def read_others() -> tuple[str, ...]:
    """A few names of several kinds, a line each."""
    return tuple((resources.files("editing.probes") / "others.txt").read_text(encoding="utf-8").splitlines())


def check_count(count: int, *, alike: bool) -> None:
    """Raise :class:`InputError` if there are fewer other subjects."""
    most = len(read_names() if alike else read_others())
    if count > most:
        raise InputError(f"preserve_neighbours: expected at most {most}, found {count}")


def neighbours_of(turn: Turn, joiner: Joiner, count: int, max_tokens: int | None, alike: Alike | None = None) -> list[list[AnswerSequence]]:
    """Of each of a turn's sequences, its neighbours in the same framing, up to where the answer would begin.

    An edit has the same ones in every turn. It has none where its subject cannot be found in its prompt; one that is another edit of the turn,
    or that is too long for the model, is left out.

    Args:
        turn: The turn.
        joiner: The model's joiner.
        count: Neighbours of each sequence.
        max_tokens: The model's context length, or ``None`` for no limit.
        alike: Chooses their subjects; by default they follow one another.
    """
    edited = {sequence.input_ids[: sequence.first_row + 1] for edit in turn.edits for sequence in edit.forms}
    prompts = _prompts([edit.request for edit in turn.edits], count, alike)
    forms = [joiner.forms_of(edit.request.asked) for edit in turn.edits]
    of_each = ([found for prompt in prompts[i] for found in _encoded(forms[i][number], prompt, max_tokens)] for i, number in turn.places)
    return [[sequence for sequence in several if sequence.input_ids not in edited] for several in of_each]


@dataclass(frozen=True, slots=True)
class _About:
    """A prompt, in which another subject may stand in the place of its own."""

    prompt: str
    before: str
    subject: str
    after: str

    @classmethod
    def of(cls, request: EditRequest) -> "_About | None":
        prompt = request.prompt
        for subject in filter(None, (request.subject, likely_subject(prompt))):
            if span := subject_span(prompt, subject):
                before, after = prompt[: span[0]], prompt[span[1] :]
                return None if subject_span(before, subject) else cls(prompt, before, subject, after)  # else it would still be about the subject
        return None

    def following(self) -> list[str]:
        """Other subjects of several kinds, from a place on that the prompt alone decides."""
        others, first = self.others(read_others()), crc32(self.prompt.encode())
        return [others[(first + k) % len(others)] for k in range(len(others))]

    def others(self, names: Sequence[str]) -> list[str]:
        """Those that are not the subject by another name."""
        return [name for name in names if not _words(name) & _words(self.subject)]


def _prompts(requests: Sequence[EditRequest], count: int, alike: Alike | None) -> list[list[str]]:
    """Each request's prompt about other subjects."""
    found = [_About.of(request) for request in requests]
    abouts = [about for about in found if about]
    if alike and abouts:
        of_each = iter([about.others(names) for about, names in zip(abouts, alike([about.subject for about in abouts]), strict=True)])
    else:
        of_each = iter([about.following() for about in abouts])
    return [[about.before + other + about.after for other in next(of_each)[:count]] if about else [] for about in found]


def _words(name: str) -> set[str]:
    """What two names of the same thing have in common: a word, whatever its case and accents."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(c))
    return set(re.findall(r"\w+", plain)) - _COMMON_WORDS


def _encoded(form: Joiner, prompt: str, max_tokens: int | None) -> list[AnswerSequence]:
    """A prompt as a sequence of one row; nothing if the model has no tokens or no room for it."""
    try:
        return [encode(form, prompt, None, max_tokens=max_tokens)]
    except InvalidRequest:
        return []
