"""Placeholders in prompts: where the field's formats leave room for the subject, it is put in; where it is unclear, the record is refused.

A placeholder is ``{}``, ``{0}``, ``[X]``, or ``subject`` (``subj``, ``sub_label``, ``entity``) in ``{}``, ``{{}}``, ``[]`` or ``<>``.

* A subject that stands in the text as a word says that the text is written out: whatever else is in it is text.
* Among code, JSON or mathematics a placeholder is text too: beside an operator or bracket, in a call, with other braces around it.
* Else the subject is put in at all its places; ``{}`` may stand once, and there may be no second kind.
* Without a subject the record is refused if the placeholder stands like a word in a text that has no sign of code at all.

A placeholder of the answer (``[Y]``, ``[MASK]``, ``{object}``) is refused, and one by another name (``{country}``) where the subject is missing.
"""

import re

from editing.errors import InvalidRequest

_NAMES = "subject|subj|sub_label|entity"

_SUBJECT = re.compile(rf"\{{\}}|\{{0\}}|\[X\]|(?i:\{{\{{ ?(?:{_NAMES}) ?\}}\}}|\{{(?:{_NAMES})\}}|\[(?:{_NAMES})\]|<(?:{_NAMES})>)")

_ANSWER = re.compile(r"\[Y\]|(?i:\[mask\]|<mask>|\{(?:object|obj_label|target|target_new|answer)\}|\[object\]|<object>)")

_OTHER = re.compile(r"\{[A-Za-z_]\w*\}|\{1\}")

_ANY = re.compile(f"{_SUBJECT.pattern}|{_ANSWER.pattern}|{_OTHER.pattern}")

_OPERATORS = frozenset("=+*|^<>`")

_CODE = re.compile(r"[{}\\`]|</|\w\(\)|==|&&")
"""What, in the rest of a text, makes all of it code."""

_PERHAPS_CODE = re.compile(r"[=;]|\[\]|->|::|//|\"\s*:")
"""What does if there is no subject."""


def fill(text: str, subject: str | None, field: str) -> str:
    """A prompt with the subject where its placeholder is; a text without one as it is.

    Args:
        text: The prompt.
        subject: The record's subject, if it names one.
        field: The prompt's name in the record, for errors.

    Raises:
        InvalidRequest: There is a placeholder, and no telling what belongs there.
    """
    if not any(mark in text for mark in "{[<") or _CODE.search(rest := _ANY.sub("", text)):
        return text
    marks = [match for match in _ANY.finditer(text) if not _beside_code(text, match) and (match[0] != "{1}" or "{0}" in text)]
    found = [match[0] for match in marks if _SUBJECT.fullmatch(match[0])]
    if answer := next((match[0] for match in marks if _ANSWER.fullmatch(match[0])), None):
        raise InvalidRequest(field, f"holds the placeholder {answer}, which stands for the answer; end the prompt where the answer begins")
    if subject is None or not subject.strip():
        _refuse_without_subject(text, rest, marks, field)
        return text
    if _stands_in(text, subject):
        return text
    if other := next((match[0] for match in marks if match[0] not in found), None):
        hint = "write {} where the subject belongs, or write the name out"
        raise InvalidRequest(field, f"holds {other}, and the subject {subject!r} does not stand in it; {hint}")
    if len(set(found)) > 1 or found.count("{}") > 1:
        raise InvalidRequest(field, f"holds {' and '.join(found[:3])}, and the record has one subject; write out what does not stand for it")
    return text.replace(found[0], subject) if found else text


def _refuse_without_subject(text: str, rest: str, marks: list[re.Match[str]], field: str) -> None:
    found = next((match[0] for match in marks if _SUBJECT.fullmatch(match[0]) and _is_word(text, match)), None)
    if found and not _PERHAPS_CODE.search(rest):
        hint = f"give one, or write the name out; if {found} is text, a subject that stands in it says so"
        raise InvalidRequest(field, f"holds the placeholder {found}, and the record has no subject to put there; {hint}")


def _beside_code(text: str, match: re.Match[str]) -> bool:
    before, after = text[: match.start()].rstrip(" "), text[match.end() :]
    return before[-1:] in {*_OPERATORS, "[", "$"} or after.lstrip(" ")[:1] in _OPERATORS or after[:1] in {"(", "[", ";"}


def _is_word(text: str, match: re.Match[str]) -> bool:
    """Whether no letter or number of a script that separates its words touches it."""
    beside = text[: match.start()][-1:] + text[match.end() :][:1]
    return not any(character.isascii() and (character.isalnum() or character == "_") for character in beside)


def _stands_in(text: str, subject: str) -> bool:
    """Whether a subject stands in a text as a word, or is itself what looks like a placeholder there."""
    return subject in _SUBJECT.findall(text) or re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", _SUBJECT.sub(" ", text)) is not None
