"""Neighbours of an edit: its prompt about other subjects, which the edit is not about and must not change.

    "The mother tongue of Danielle Darrieux is" -> "English"      the edit
    "The mother tongue of Norway is"                              a neighbour: whatever the model says there, it goes on saying

What a shift moves at the end of a prompt depends on the prompt's words far more than on its subject. A text that no edit is about holds none of
these words, so it cannot hold the shift back there (docs/LOG.md, "Neighbours"). The other subjects are well-known names of several kinds, which
ship with the project. A name need not suit the prompt: what is held is the model's state where the answer would begin, not a fact.

Differences from the published implementation
    * It has none. Off by default.
"""

import re
import unicodedata
from functools import cache
from importlib import resources
from zlib import crc32

from editing.errors import InputError, InvalidRequest
from editing.model.joining import Joiner
from editing.model.tokenization import AnswerSequence, encode
from editing.requests import EditRequest
from editing.subjects import likely_subject, subject_span
from editing.turn import Turn

_COMMON_WORDS = {"the", "of"}


@cache
def read_others() -> tuple[str, ...]:
    """The other subjects, a line each."""
    return tuple((resources.files("editing.probes") / "others.txt").read_text(encoding="utf-8").splitlines())


def check_count(count: int) -> None:
    """Raise :class:`InputError` if there are fewer other subjects."""
    if count > len(read_others()):
        raise InputError(f"preserve_neighbours: expected at most {len(read_others())}, found {count}")


def neighbours_of(turn: Turn, joiner: Joiner, count: int, max_tokens: int | None) -> list[list[AnswerSequence]]:
    """Of each of a turn's sequences, its neighbours in the same framing, up to where the answer would begin.

    An edit has the same ones in every turn. It has none where its subject cannot be found in its prompt; one that is another edit of the turn,
    or that is too long for the model, is left out.

    Args:
        turn: The turn.
        joiner: The model's joiner.
        count: Neighbours of each sequence.
        max_tokens: The model's context length, or ``None`` for no limit.
    """
    edited = {sequence.input_ids[: sequence.first_row + 1] for edit in turn.edits for sequence in edit.forms}
    prompts = [_prompts(edit.request, count) for edit in turn.edits]
    forms = [joiner.forms_of(edit.request.asked) for edit in turn.edits]
    of_each = ([found for prompt in prompts[i] for found in _encoded(forms[i][number], prompt, max_tokens)] for i, number in turn.places)
    return [[sequence for sequence in several if sequence.input_ids not in edited] for several in of_each]


def _prompts(request: EditRequest, count: int) -> list[str]:
    """The request's prompt about other subjects: consecutive ones, from a place that the prompt alone decides."""
    prompt = request.prompt
    for subject in filter(None, (request.subject, likely_subject(prompt))):
        if span := subject_span(prompt, subject):
            break
    else:
        return []
    before, after = prompt[: span[0]], prompt[span[1] :]
    if subject_span(before, subject):  # it would still be about the subject
        return []
    others = [other for other in read_others() if not _words(other) & _words(subject)]
    first = crc32(prompt.encode())
    return [before + others[(first + k) % len(others)] + after for k in range(min(count, len(others)))]


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
