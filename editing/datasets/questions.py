"""Questions beside an edit, however data sets nest them.

A question is an object with a prompt and its answers, under any of the names below: KnowEdit's ``{"prompt": "...", "ground_truth":
[["an answer", "an alias of it"]]}``, QAEdit's ``loc`` and ``loc_ans``, zsRE's ``New Question`` and ``New Answer``. EasyEdit's
``locality_inputs`` and ``portability_inputs`` hold lists of prompts and of answers in one object. Questions come alone, in a list, or
in an object by kind.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from editing.datasets.fields import Fields, present
from editing.errors import InvalidRequest

_PROMPTS = ("prompt", "question", "query", "loc", "New Question", "src", "input")
_ANSWERS = ("ground_truth", "answer", "answers", "target", "target_new", "loc_ans", "New Answer", "alt", "output")
UNTOUCHED = ("Relation_Specificity", "Relation_Specifity", "Forgetfulness")
"""Kinds of locality questions, those first that are asked rather than others."""

_NEEDING_MORE = frozenset(("compositionality_i", "compositionality_ii", "compositionality", "two_hop", "multi_hop", "multihop"))
"""Kinds of questions that need the edit and more."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its right answers, the preferred one first; none if the data set has none.

    Attributes:
        prompt: What is asked.
        answers: The answers.
        kind: Its kind, as the data set calls it; empty if it has none.
    """

    prompt: Any
    answers: list[str]
    kind: str = ""

    @property
    def answer(self) -> str | None:
        return self.answers[0] if self.answers else None

    @property
    def needs_more(self) -> bool:
        """Whether it needs the edit and other facts, by its kind."""
        return self.kind.lower() in _NEEDING_MORE


def questions(fields: Fields, name: str, *, bare: bool = False, expected: str = "an object with lists of questions") -> list[Question]:
    """The questions of a field. Kinds that cannot be read as questions stay unread.

    Args:
        fields: The record.
        name: The field.
        bare: Whether a text alone, in a list of some kind, is a question: one that needs no answer.
        expected: What such a field holds, for errors.

    Raises:
        InvalidRequest: It holds something else.
    """
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, Mapping):
        return _read(name, value, bare=False, expected=expected)
    if _is_question(value):
        return _one(name, value)
    groups, found = fields.object(name), []
    assert groups is not None
    for kind in groups.names():
        inner = groups.peek(kind)
        if _holds_questions(inner, bare=bare) or kind in UNTOUCHED:
            read = _read(f"{name}.{kind}", groups.get(kind), bare=bare, expected="objects with prompt and ground_truth")
            found += [Question(q.prompt, q.answers, kind) for q in read]
        elif isinstance(inner, list):
            raise InvalidRequest(f"{name}.{kind}", f"expected objects with prompt and ground_truth, found {_named(inner)}")
    return found


def answers(name: str, value: Any) -> list[str]:
    """An answer, a list of answers, or a list of lists of aliases, as one list; RippleEdits' objects give their value first.

    Raises:
        InvalidRequest: It is something else.
    """
    found: list[str] = []
    for outer in value if isinstance(value, list) else [present(value)]:
        for answer in outer if isinstance(outer, list) else [outer]:
            if isinstance(answer, Mapping) and isinstance(answer.get("value", answer.get("str")), str):
                aliases = answer.get("aliases")
                found += [
                    str(answer.get("value", answer.get("str"))),
                    *(a for a in (aliases if isinstance(aliases, list) else []) if isinstance(a, str)),
                ]
            elif isinstance(answer, str):
                found.append(answer)
            elif answer is not None:
                raise InvalidRequest(name, f"expected a non-empty string or a list of them, found {type(answer).__name__}")
    return found


def _read(name: str, value: Any, *, bare: bool, expected: str) -> list[Question]:
    found = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, Mapping) and _is_question(item):
            found += _one(name, item)
        elif bare and isinstance(item, str):
            found.append(Question(item, []))
        else:
            raise InvalidRequest(name, f"expected {expected}, found {_named(value)}")
    return found


def _one(name: str, item: Mapping[str, Any]) -> list[Question]:
    """One question, or as many as there are prompts and answers in two lists."""
    asked, answer = _key(item, _PROMPTS), _key(item, _ANSWERS)
    prompts, given = item.get(asked or ""), item.get(answer or "")
    label = answer if answer == "loc_ans" else f"{name}.{answer}"
    if isinstance(prompts, list) and len(prompts) > 1 and isinstance(given, list) and len(given) == len(prompts):
        return [Question(prompt, answers(str(label), one)) for prompt, one in zip(prompts, given, strict=True)]
    if isinstance(prompts, list) and len(prompts) > 1 and given is not None:
        raise InvalidRequest(str(label), f"expected one answer for each question, found {len(answers(str(label), given))} for {len(prompts)}")
    return [Question(prompt, answers(str(label), given)) for prompt in (prompts if isinstance(prompts, list) and prompts else [prompts])]


def _is_question(value: Mapping[str, Any]) -> bool:
    return _key(value, _PROMPTS) is not None


def _holds_questions(value: Any, *, bare: bool) -> bool:
    items: Iterable[Any] = value if isinstance(value, list) else [value]
    return all((isinstance(item, Mapping) and _is_question(item)) or (bare and isinstance(item, str)) for item in items)


def _key(value: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((name for name in names if present(value.get(name)) is not None), None)


def _named(value: Any) -> str:
    inner = next((type(item).__name__ for item in value if not isinstance(item, Mapping)), "object") if isinstance(value, list) else ""
    return f"list of {inner}" if inner else type(value).__name__
