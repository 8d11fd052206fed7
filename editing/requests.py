"""What a person asks for: one edit, with the probes that tell whether it worked."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from editing.blanks import bare
from editing.errors import InvalidRequest
from editing.messages import Asked, Message, chat_of, check_text

TEXT_LISTS = ("persona", "multi_hop_prompt", "multi_hop_answer", "portability_prompt", "portability_answer")
"""Fields that hold any number of texts; the others hold one or none."""


@dataclass(frozen=True, slots=True)
class EditRequest:
    """One fact to write into the model. :data:`TEXT_LISTS` may be given as one text or as a list, and become tuples.

    Attributes:
        prompt: Text after which the model shall write ``target``. Where ``messages`` are given it is what the last of them says.
        target: The new answer. Blanks at its edges and at the prompt's are kept here; what they say is in :mod:`editing.blanks`.
        id: Name of the edit in results; ``None`` lets the run number it.
        subject: What the fact is about, as it stands in the prompt. Edits at the subject need it; the published method does not.
        rephrase: The same question in other words; probes generalization.
        locality_prompt: A question that the edit must not change; probes specificity and retention.
        locality_answer: The true answer to ``locality_prompt``.
        persona: The same question as other people would ask it; probes generalization to them.
        multi_hop_prompt: Questions whose answers follow from the edit and from facts that the model knows.
        multi_hop_answer: Their answers once the edit holds, one a question.
        portability_prompt: Questions of any other kind that the edit changes too: by another name of the subject, the other way round.
        portability_answer: Their answers once the edit holds, one a question.
        messages: In place of a prompt, a chat after which the model shall answer ``target``: any system message first, then user and
            assistant in turn, the user last. Each is a :class:`Message`, or a mapping with ``role`` and ``content``; they become a tuple.

    Raises:
        InvalidRequest: A field is missing, blank, too long or not text.
    """

    prompt: str = ""
    target: str = ""
    id: str | None = None
    subject: str | None = None
    rephrase: str | None = None
    locality_prompt: str | None = None
    locality_answer: str | None = None
    persona: tuple[str, ...] = ()
    multi_hop_prompt: tuple[str, ...] = ()
    multi_hop_answer: tuple[str, ...] = ()
    portability_prompt: tuple[str, ...] = ()
    portability_answer: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", chat_of(self.messages, self.prompt))
        if self.messages:
            object.__setattr__(self, "prompt", self.messages[-1].content)
        for field in fields(self):
            if field.name == "messages":
                continue
            value = getattr(self, field.name)
            if field.name in TEXT_LISTS:
                object.__setattr__(self, field.name, _texts(field.name, value))
            elif value is not None or field.name in ("prompt", "target"):
                check_text(field.name, value)
        if self.locality_answer is not None and self.locality_prompt is None:
            raise InvalidRequest("locality_answer", "given without a locality_prompt")
        for kind in ("multi_hop", "portability"):
            asked, answered = len(getattr(self, f"{kind}_prompt")), len(getattr(self, f"{kind}_answer"))
            if asked != answered:
                raise InvalidRequest(f"{kind}_answer", f"expected one answer for each question, found {answered} for {asked}")

    @property
    def asked(self) -> Asked:
        """The chat, or else the prompt."""
        return self.messages or self.prompt

    @property
    def question(self) -> str:
        """The same text for requests that ask the same: the prompt without the blanks at its edges, and what was said in a chat before it.

        A chat of one message asks what a prompt asks.
        """
        earlier = [[message.role, message.content] for message in self.messages[:-1]]
        return f"{json.dumps(earlier, ensure_ascii=False)} {bare(self.prompt)}" if earlier else bare(self.prompt)

    def in_short(self) -> dict[str, Any]:
        """Question and answer alone, as plain values."""
        chat = [asdict(message) for message in self.messages]
        return {**({"messages": chat} if chat else {"prompt": self.prompt}), "target": self.target}

    def asks_as(self, other: "EditRequest") -> bool:
        """Whether another request asks the same, whatever blanks are at the edges of its prompt."""
        return self.question == other.question

    def answers_as(self, other: "EditRequest") -> bool:
        """The same of its target."""
        return bare(self.target) == bare(other.target)


def _texts(name: str, value: object) -> tuple[str, ...]:
    texts = () if value is None else tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for text in texts:
        check_text(name, text)
    return texts
