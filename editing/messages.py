"""What a person says to a model: a text, or the messages of a chat."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from editing.blanks import bare
from editing.errors import InvalidRequest

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


def chat_of(value: Any, prompt: Any) -> tuple[Message, ...]:
    """Messages as a request keeps them.

    Args:
        value: What was given as messages.
        prompt: What was given as the prompt.

    Returns:
        The messages; none where there is a prompt instead.

    Raises:
        InvalidRequest: They are none, or not in their order, or a prompt says something else.
    """
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
        check_text("content", content)
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


def check_text(name: str, value: object) -> None:
    """Raise :class:`InvalidRequest` unless a value is a text with something in it, of a length that a tokenizer takes.

    Args:
        name: The field, for errors.
        value: What it holds.
    """
    if value is None:
        raise InvalidRequest(name, "missing; expected a non-empty string")
    if not isinstance(value, str):
        raise InvalidRequest(name, f"expected a non-empty string, found {type(value).__name__}")
    if not bare(value):
        raise InvalidRequest(name, "expected a non-empty string, found only blanks" if value else "expected a non-empty string")
    if len(value) > _MAX_CHARACTERS:
        raise InvalidRequest(name, f"is {len(value):,} characters long; expected at most {_MAX_CHARACTERS:,}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest(name, "contains a lone surrogate, which is not valid Unicode text") from None
