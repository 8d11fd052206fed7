"""A request in the making: values from a record's fields, under whatever names and in whatever nesting people have them."""

from collections.abc import Iterable
from typing import Any

from editing.datasets.fields import Fields, identifier, text_of
from editing.datasets.placeholders import fill
from editing.datasets.questions import UNTOUCHED, Question, answers, questions
from editing.errors import InvalidRequest
from editing.requests import TEXT_LISTS, EditRequest

NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "case_id"),
    "subject": ("subject",),
    "rephrase": (
        *("rephrase", "rephrase_prompt", "rephrase_prompts", "rephrases", "paraphrase_prompts", "paraphrase_prompt", "paraphrases", "paraphrase"),
        *("queries", "equiv_prompt", "para_question"),
    ),
    "locality_prompt": ("locality_prompt", "locality_prompts", "neighborhood_prompts", "neighborhood_prompt", "loc", "unrel_prompt"),
    "locality_answer": ("locality_answer", "locality_answers", "locality_ground_truth", "loc_ans", "unrel_ans"),
    "persona": ("persona", "personas"),
    "multi_hop_prompt": ("multi_hop_prompt", "multi_hop_prompts", "mhop"),
    "multi_hop_answer": ("multi_hop_answer", "multi_hop_answers", "mhop_ans"),
    "portability_prompt": ("portability_prompt", "portability_prompts"),
    "portability_answer": ("portability_answer", "portability_answers", "portability_ground_truth"),
}
"""Where a record may have what every format has as an option: the first that is there counts."""

TRUE = ("ground_truth", "target_true", "target_old", "answer_true", "o_answer", "answers")
"""Where it may have the answer from before the edit. Only compared with the target."""

_PROMPTS = ("prompt", "rephrase", "locality_prompt", "persona", "multi_hop_prompt", "portability_prompt")


class Draft:
    """What a record asks for, field by field, and what the record calls it, for errors.

    Args:
        fields: The record.
        **names: The format's own names for our fields; they go before :data:`NAMES`.

    Attributes:
        about: What holds the fact itself: the record, or an object in it.
    """

    def __init__(self, fields: Fields, **names: str) -> None:
        self.fields = self.about = fields
        self._names: dict[str, str] = dict(names)
        self._own = names
        self._values: dict[str, Any] = {}

    def __getitem__(self, ours: str) -> Any:
        return self._values.get(ours)

    def put(self, ours: str, value: Any, name: str) -> None:
        """Set a field of ours."""
        self._values[ours], self._names[ours] = value, name

    def take(self, ours: str) -> None:
        """Set a field of ours from the record, if it was not set."""
        if ours not in self._values:
            names = NAMES.get(ours, ())
            name, value = self.fields.find(*((self._own[ours], *names) if ours in self._own else names))
            self.put(ours, value, name if value is not None else self._own.get(ours, ours))

    def ask(self, kind: str, asked: Iterable[Question], name: str) -> None:
        """Add questions to ``multi_hop`` or ``portability``; those without an answer are left out, and noted."""
        asked = list(asked)
        usable = [question for question in asked if question.answers]
        self.fields.not_ask(name, len(asked) - len(usable))
        for part, values in (("prompt", [q.prompt for q in usable]), ("answer", [q.answer for q in usable])):
            before = self._values.get(f"{kind}_{part}")
            before = before if isinstance(before, list) else [] if before is None else [before]
            if values or before:
                self.put(f"{kind}_{part}", before + values, self._names.get(f"{kind}_{part}", name) if before else name)

    def request(self) -> EditRequest:
        """The request, with every probe that the record has.

        Raises:
            InvalidRequest: A field is missing or not usable; it is named as in the record.
        """
        self._complete()
        try:
            return EditRequest(**self._values)
        except InvalidRequest as error:
            raise InvalidRequest(self._names.get(error.field, error.field), error.reason) from None

    def _complete(self) -> None:
        for ours in EditRequest.__slots__:
            if ours != "locality_answer" and (ours != "messages" or ours in self._own):
                self.take(ours)
        self._values["id"] = identifier(self["id"])
        self._values["rephrase"] = self._first("rephrase")
        for ours in ("prompt", "target", "subject", "rephrase"):
            self._values[ours] = text_of(self._names[ours], self[ours])
        self._take_locality()
        self._take_questions()
        self._fill()
        self._remark()

    def _first(self, ours: str) -> Any:
        """The first of several; more than one is not asked."""
        value = self[ours]
        if not isinstance(value, list):
            return value
        self.fields.not_ask(self._names[ours], len(value) - 1)
        return value[0] if value else None

    def _take_locality(self) -> None:
        """One question: the prompt's own field goes before what is nested."""
        if self["locality_prompt"] is None:
            self._nested_locality()
        elif isinstance(self["locality_prompt"], list) and any(isinstance(one, dict) for one in self["locality_prompt"]):
            self.put_locality(questions(self.fields, self._names["locality_prompt"]), self._names["locality_prompt"])
        else:
            self.take("locality_answer")
            if self["locality_answer"] is None and self._names["locality_prompt"].startswith("neighborhood"):
                name, value = self.about.find(*TRUE)
                self.put("locality_answer", text_of(name, value), name)  # neighbours have the answer that the edit replaces
            for ours in ("locality_prompt", "locality_answer"):
                self._values[ours] = self._first(ours)
            if not self["locality_prompt"]:
                self._values.pop("locality_answer")

    def _nested_locality(self) -> None:
        for name in ("locality", "locality_inputs"):
            if self["locality_prompt"] is None:
                self.put_locality(questions(self.fields, name, bare=True), name)

    def put_locality(self, asked: list[Question], name: str) -> None:
        """Take the first of some questions, by its kind and then by its place, as the locality probe; the others are not asked."""
        for question in sorted(asked, key=lambda q: UNTOUCHED.index(q.kind) if q.kind in UNTOUCHED else len(UNTOUCHED))[:1]:
            self.fields.not_ask(name, len(asked) - 1)
            self.put("locality_prompt", question.prompt, name)
            self.put("locality_answer", question.answer, name)

    def _take_questions(self) -> None:
        for kind in ("multi_hop", "portability"):
            name, value = self._names[f"{kind}_answer"], self[f"{kind}_answer"]
            if isinstance(value, list):  # each may come with its aliases
                self._values[f"{kind}_answer"] = [next(iter(answers(name, one)), None) if isinstance(one, (list, dict)) else one for one in value]
        for name in ("portability", "portability_inputs"):
            asked = self._rephrased_by_alias(questions(self.fields, name), name)
            if not asked:
                continue
            self.ask("multi_hop", [question for question in asked if question.needs_more], name)
            self.ask("portability", [question for question in asked if not question.needs_more], name)

    def _rephrased_by_alias(self, asked: list[Question], name: str) -> list[Question]:
        """Take the first question about an alias of the subject whose answer is the target as the rephrase, if there is none."""
        target = self["target"]
        asked = [Question(q.prompt, [target], q.kind) if q.kind == "Subject_Aliasing" and target in q.answers else q for q in asked]
        alias = next((q for q in asked if q.kind == "Subject_Aliasing" and q.answers == [target]), None)
        if self["rephrase"] is not None or alias is None:
            return asked
        self.put("rephrase", alias.prompt, name)
        return [question for question in asked if question is not alias]

    def _fill(self) -> None:
        subject = self["subject"] if isinstance(self["subject"], str) else None
        for ours in _PROMPTS:
            value, name = self[ours], self._names.get(ours, ours)
            if isinstance(value, str):
                self._values[ours] = fill(value, subject, name)
            elif ours in TEXT_LISTS and isinstance(value, (list, tuple)):
                self._values[ours] = [fill(one, subject, name) if isinstance(one, str) else one for one in value]
        self._fill_last_message(subject)

    def _fill_last_message(self, subject: str | None) -> None:
        messages = self["messages"]
        last = messages[-1] if isinstance(messages, list) and messages else None
        if isinstance(last, dict) and isinstance(last.get("content"), str):
            self._values["messages"] = [*messages[:-1], {**last, "content": fill(last["content"], subject, "messages")}]

    def _remark(self) -> None:
        prompt, target = self["prompt"], self["target"]
        if not isinstance(prompt, str) or not isinstance(target, str) or not target.strip():
            return
        for name in TRUE:
            value = self.about.peek(name)
            if value is not None and _folded(target) in {_folded(one) for one in _texts(value)}:
                self.about.remarks.append(f"the target is the answer from before ({name})")
        if _folded(prompt).endswith(" " + _folded(target)) or _folded(prompt) == _folded(target):
            self.about.remarks.append("the prompt ends with its target")


def _texts(value: Any) -> list[str]:
    try:
        return answers("", value)
    except InvalidRequest:
        return []


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
