"""Where the subject of an edit stands in its prompt, in any script: the place is given in the prompt's own characters. And what it may be.

Two texts are the same here if they are canonically equivalent once their case is folded: ``é`` in one character and in two, ``ß`` and
``SS``, ``İ`` and its lower case in two characters. A place never cuts a character off from its accents.
"""

import re
import unicodedata
from collections.abc import Iterator

Span = tuple[int, int]
"""First character, and the one after the last."""


def subject_span(prompt: str, subject: str) -> Span | None:
    """The last place where a subject stands in its prompt.

    As it is written goes before any other spelling of it; as a word of its own before a part of a word, as ``Java`` is of ``JavaScript``.

    Args:
        prompt: The prompt.
        subject: What it is about.

    Returns:
        The place in ``prompt``, or ``None`` if the subject does not stand there.
    """
    wanted = subject.strip()
    if not wanted:
        return None
    found = [span for span in _places(prompt, wanted) if _keeps_accents(prompt, span)] or list(_folded_places(prompt, wanted))
    return max(found, key=lambda span: (_is_word(prompt, span), span), default=None)


def likely_subject(prompt: str) -> str | None:
    """What a prompt is about, by its spelling alone: a quotation, or else the longest name.

    A name is a run of words with a capital or a digit, and of small words between them ("Bilal ibn Ribah"). A word that questions and sentences
    begin with is no name where the prompt begins with it. ``None`` in a prompt without capitals, and in scripts that have none.
    """
    if quoted := _QUOTED.search(prompt):
        return next(text for text in quoted.groups() if text)
    runs: list[tuple[int, Span]] = []
    names, start, between = 0, 0, 0
    for number, word in enumerate(re.finditer(r"\S+", prompt)):
        bare = word.group().strip(_AROUND_WORDS)
        if _is_name(bare) and not (number == 0 and bare.lower() in _OPENERS):
            names, start, between = names + 1, start if names else word.start(), 0
            ended = _POSSESSIVE.search(word.group())
            runs.append((names, (start, word.start() + ended.start() if ended else word.end())))
            names = 0 if ended or word.group()[-1] in ",;:?!" else names
        elif names and bare.lower() in _WITHIN_NAMES and between < 2:
            between += 1
        else:
            names, between = 0, 0
    if not runs:
        return None
    _, (start, end) = max(runs, key=lambda run: (run[0], -run[1][0]))
    found = prompt[start:end].strip(_AROUND_WORDS)
    return found + ")" if found.count("(") > found.count(")") and prompt[start:end].rstrip(",;:?!.").endswith(")") else found


_AROUND_WORDS = "\"'“”‘’«»„()[],;:.?!¿¡"
_QUOTED = re.compile('"([^"]+)"|“([^”]+)”|«([^»]+)»|„([^“]+)“')
_POSSESSIVE = re.compile(r"['’]s[,;:?!.]*$")
_OPENING_WORDS = (
    "a an the what which who whom whose where when why how in on at of from is was are were does did do can to for by with tell name it its this "
    "that there if as according after during has have had and i you my your complete"
)
_OPENERS = frozenset(_OPENING_WORDS.split())
_SMALL_WORDS = "of the de la le du da di del von van der den ibn bin al and & for in on at to y e a an with or dos das zu et -"
_WITHIN_NAMES = frozenset(_SMALL_WORDS.split())


def _is_name(word: str) -> bool:
    return any(character.isupper() for character in word) or word[:1].isdigit()


def _places(text: str, wanted: str) -> Iterator[Span]:
    at = text.find(wanted)
    while at >= 0:
        yield at, at + len(wanted)
        at = text.find(wanted, at + 1)


def _folded_places(prompt: str, wanted: str) -> Iterator[Span]:
    """Places of any spelling: folded texts may be longer, so it is noted where each cluster's folded text begins and ends."""
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    folded, length = [], 0
    for start, stop in _clusters(prompt):
        piece = _fold(prompt[start:stop])
        begins[length], ends[length + len(piece)] = start, stop
        folded.append(piece)
        length += len(piece)
    for start, stop in _places("".join(folded), "".join(_fold(wanted[a:b]) for a, b in _clusters(wanted))):
        if start in begins and stop in ends:
            yield begins[start], ends[stop]


def _clusters(text: str) -> Iterator[Span]:
    """Characters, each with the accents that follow it."""
    start = 0
    for at in range(1, len(text) + 1):
        if at == len(text) or not unicodedata.combining(text[at]):
            yield start, at
            start = at


def _fold(cluster: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", cluster).casefold())


def _keeps_accents(text: str, span: Span) -> bool:
    start, stop = span
    return not (stop < len(text) and unicodedata.combining(text[stop])) and not unicodedata.combining(text[start])


def _is_word(text: str, span: Span) -> bool:
    start, stop = span
    glued_before = start > 0 and text[start - 1].isalnum() and text[start].isalnum()
    glued_after = stop < len(text) and text[stop].isalnum() and text[stop - 1].isalnum()
    return not glued_before and not glued_after
