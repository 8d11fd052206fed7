"""What a person asks for: one edit, with the probes that tell whether it worked."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from editing.blanks import bare
from editing.errors import InvalidRequest

TEXT_LISTS = ("persona", "multi_hop_prompt", "multi_hop_answer", "portability_prompt", "portability_answer")
"""Fields that hold any number of texts; the others hold one or none."""

ROLES = ("system", "user", "assistant")
"""Who speaks in a chat."""

_MAX_CHARACTERS = 1_000_000
"""Far above any model's context; tokenizers take minutes over what is longer."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat.

    Attributes:
        role: One of :data:`ROLES`.
        content: What is said.
    """

    role: str
    content: str


Asked = str | tuple[Message, ...]
"""What a model is asked: a text, or a chat in which the model speaks next."""


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
        object.__setattr__(self, "messages", _chat(self.messages, self.prompt))
        if self.messages:
            object.__setattr__(self, "prompt", self.messages[-1].content)
        for field in fields(self):
            if field.name == "messages":
                continue
            value = getattr(self, field.name)
            if field.name in TEXT_LISTS:
                object.__setattr__(self, field.name, _texts(field.name, value))
            elif value is not None or field.name in ("prompt", "target"):
                _check_text(field.name, value)
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


def _chat(value: Any, prompt: Any) -> tuple[Message, ...]:
    """Messages as they are kept; none where there is a prompt instead."""
    if value in (None, ()) or (value == [] and prompt):
        return ()
    if not isinstance(value, (list, tuple)) or not value:
        found = "an empty list" if value == [] else type(value).__name__
        raise InvalidRequest("messages", f"expected a list of messages with role and content, found {found}")
    messages = tuple(_message(number, one) for number, one in enumerate(value, start=1))
    _check_order([message.role for message in messages])
    if prompt and prompt != messages[-1].content:
        raise InvalidRequest("messages", "given beside a prompt; expected one of the two")
    return messages


def _message(number: int, value: Any) -> Message:
    if isinstance(value, Message):
        value = asdict(value)
    if not isinstance(value, Mapping):
        raise InvalidRequest("messages", f"message {number}: expected an object with role and content, found {type(value).__name__}")
    if others := [str(name) for name, one in value.items() if name not in ("role", "content") and one is not None]:
        raise InvalidRequest("messages", f"message {number}: expected role and content alone, found {others[0]!r}")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise InvalidRequest("messages", f"message {number}: role: expected {', '.join(ROLES)}, found {role!r}")
    try:
        _check_text("content", content)
    except InvalidRequest as error:
        raise InvalidRequest("messages", f"message {number}: {error}") from None
    return Message(role, str(content))


def _check_order(roles: list[str]) -> None:
    first = 1 if roles[0] == "system" else 0
    for place, role in enumerate(roles[first:]):
        expected = ("user", "assistant")[place % 2]
        if role != expected:
            raise InvalidRequest("messages", f"message {first + place + 1}: expected one by the {expected}, found one by the {role}")
    if (len(roles) - first) % 2 == 0:
        hint = "; its answer belongs in target" if roles[-1] == "assistant" else ""
        raise InvalidRequest("messages", f"expected the last message by the user, found one by the {roles[-1]}{hint}")


def _texts(name: str, value: object) -> tuple[str, ...]:
    texts = () if value is None else tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for text in texts:
        _check_text(name, text)
    return texts


def _check_text(name: str, value: object) -> None:
    if value is None:
        raise InvalidRequest(name, "missing; expected a non-empty text")
    if not isinstance(value, str):
        raise InvalidRequest(name, f"expected a text, found {type(value).__name__}")
    if not bare(value):
        raise InvalidRequest(name, "expected a non-empty text, found only blanks" if value else "expected a non-empty text")
    if len(value) > _MAX_CHARACTERS:
        raise InvalidRequest(name, f"is {len(value):,} characters long; expected at most {_MAX_CHARACTERS:,}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest(name, "contains a lone surrogate, which is not valid Unicode text") from None
