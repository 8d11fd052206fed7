"""Neighbours of an edit: its prompt about other subjects, which the edit is not about and must not change.

    "The mother tongue of Danielle Darrieux is" -> "English"      the edit
    "The mother tongue of Norway is"                              a neighbour: whatever the model says there, it goes on saying

What a shift moves at the end of a prompt depends on the prompt's words far more than on its subject. A text that no edit is about holds none of
these words, so it cannot hold the shift back there (docs/LOG.md, "Neighbours"). The other subjects are well-known names of several kinds, which
ship with the project. A name need not suit the prompt: what is held is the model's state where the answer would begin, not a fact.

Differences from the published implementation
    * It has none. Off by default.
"""

from functools import cache
from importlib import resources
from zlib import crc32

from editing.errors import InputError, InvalidRequest
from editing.model.joining import Joiner
from editing.model.tokenization import AnswerSequence, encode
from editing.requests import EditRequest
from editing.subjects import subject_span
from editing.turn import Turn, subject_of


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

    An edit has the same ones in every turn. It has none if its prompt has no subject; one that another edit of the turn is about, or that is
    too long for the model, is left out.

    Args:
        turn: The turn.
        joiner: The model's joiner.
        count: Neighbours of each sequence.
        max_tokens: The model's context length, or ``None`` for no limit.
    """
    edited = {edit.request.prompt for edit in turn.edits}
    prompts = [[prompt for prompt in _prompts(joiner, edit.request, count) if prompt not in edited] for edit in turn.edits]
    forms = [joiner.forms_of(edit.request.asked) for edit in turn.edits]
    return [[found for prompt in prompts[i] for found in _encoded(forms[i][number], prompt, max_tokens)] for i, number in turn.places]


def _prompts(joiner: Joiner, request: EditRequest, count: int) -> list[str]:
    """The request's prompt about other subjects: consecutive ones, from a place that the prompt alone decides."""
    subject = subject_of(joiner, request)
    span = subject_span(request.prompt, subject) if subject else None
    if subject is None or span is None:
        return []
    others = [other for other in read_others() if other.casefold() != subject.strip().casefold()]
    first = crc32(request.prompt.encode())
    chosen = [others[(first + k) % len(others)] for k in range(min(count, len(others)))]
    return [request.prompt[: span[0]] + other + request.prompt[span[1] :] for other in chosen]


def _encoded(form: Joiner, prompt: str, max_tokens: int | None) -> list[AnswerSequence]:
    """A prompt as a sequence of one row; nothing if the model has no tokens or no room for it."""
    try:
        return [encode(form, prompt, None, max_tokens=max_tokens)]
    except InvalidRequest:
        return []
