"""Questions beside an edit, as EasyEdit's releases nest them in ``portability`` and ``locality``.

KnowEdit's are lists of questions by kind, each with its answers, of which any may have aliases:
``{"Reasoning": [{"prompt": "...", "ground_truth": [["an answer", "an alias of it"]]}]}``. zsRE and CounterFact have one:
``{"Recalled Relation": "...", "New Question": "...", "New Answer": "..."}``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from editing.errors import InvalidRequest

_FOLLOWING = ("Reasoning", "Logical_Generalization")
"""Kinds of questions whose answer follows from the edit and from what the model knows."""

_UNTOUCHED = ("Relation_Specificity", "Forgetfulness")


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its right answers, the preferred one first; none if the data set has none."""

    prompt: Any
    answers: list[str]

    @property
    def answer(self) -> str | None:
        return self.answers[0] if self.answers else None


def portability(record: Mapping[str, Any], *kinds: str) -> list[Question]:
    """Questions of a record with an answer; by default those that follow from the edit.

    Raises:
        InvalidRequest: They are not nested as described above.
    """
    groups = _groups(record, "portability")
    found = [q for kind in kinds or _FOLLOWING for q in _questions(f"portability.{kind}", groups.get(kind))]
    if not kinds and groups.get("New Question") is not None:
        found.append(Question(groups["New Question"], answers("portability.New Answer", groups.get("New Answer"))))
    return [q for q in found if q.answers]


def locality(record: Mapping[str, Any]) -> list[Question]:
    """Questions that the edit must not change; they need no answer.

    Raises:
        InvalidRequest: As :func:`portability`.
    """
    groups = _groups(record, "locality")
    return [q for kind in _UNTOUCHED for q in _questions(f"locality.{kind}", groups.get(kind))]


def answers(name: str, value: Any) -> list[str]:
    """An answer, a list of answers, or a list of lists of aliases, as one list.

    Raises:
        InvalidRequest: It is something else.
    """
    outer = value if isinstance(value, list) else [] if value is None else [value]
    found = [answer for item in outer for answer in (item if isinstance(item, list) else [item]) if answer is not None]
    for answer in found:
        if not isinstance(answer, str):
            raise InvalidRequest(name, f"expected a text or a list of texts, found {type(answer).__name__}")
    return found


def _groups(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    groups = record.get(name)
    if groups is None:
        return {}
    if not isinstance(groups, Mapping):
        raise InvalidRequest(name, f"expected an object with lists of questions, found {type(groups).__name__}")
    return groups


def _questions(name: str, items: Any) -> list[Question]:
    items = items if isinstance(items, list) else [] if items is None else [items]
    found = []
    for item in items:
        if not isinstance(item, Mapping):
            raise InvalidRequest(name, f"expected objects with prompt and ground_truth, found {type(item).__name__}")
        prompt = item.get("prompt")
        asked = prompt[0] if isinstance(prompt, list) and prompt else prompt
        found.append(Question(asked, answers(f"{name}.ground_truth", item.get("ground_truth"))))
    return found
