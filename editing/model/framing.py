"""Framings: the ways in which one fact is asked for, as data.

    raw        the prompt as it is typed
    a text     with ``{prompt}`` in it, as "Question: {prompt}\\nAnswer:"
    a chat     messages, with ``{prompt}`` in one of them, in the model's own template up to where its answer begins

A framing is written as the name of one that ships with the project (``editing/probes/framings.yaml``), or as its definition: a text with
``{prompt}``, or the messages as JSON. A file of definitions stands for all of them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from editing.config import AUTO, RAW
from editing.errors import InputError, InvalidRequest, first_line
from editing.messages import Message

CHAT = "chat"
"""The framing of one question in the model's chat template."""

PLACE = "{prompt}"
"""Stands for the prompt in a framing."""

_MARK, _ANSWER = "\ue000", "\ue001"
"""Characters for private use, which no template asks about."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A framing for one tokenizer.

    Attributes:
        name: As it was asked for.
        before: Text before the prompt.
        after: Text between the prompt and the answer.
        end: What ends an answer.
        chat: Whether all of it is what a chat template writes, special tokens included, to be encoded as it stands.
    """

    name: str
    before: str
    after: str
    end: str = ""
    chat: bool = False


def shipped() -> tuple[str, ...]:
    """Names of the framings that ship with the project."""
    return tuple(_shipped())


def expanded(framings: Sequence[str]) -> tuple[str, ...]:
    """Framings with those of each file among them in its place.

    Raises:
        InputError: A file holds no framings, or one of the framings is neither a name, nor a definition, nor a file.
    """
    return tuple(one for framing in framings for one in (_of_file(Path(framing)) if _is_file(framing) else [framing]))


def resolve_framings(framings: Sequence[str], *, chats: bool) -> tuple[str, ...]:
    """Framings with ``auto`` replaced: raw, and chat where the model has a chat template."""
    if tuple(framings) != (AUTO,):
        return expanded(framings)
    return (RAW, CHAT) if chats else (RAW,)


def describe_framings(framings: Sequence[str]) -> str:
    """What a person reads of them."""
    return f"each edit is written as {' and '.join(map(repr, framings))}"


def check_framings(framings: Sequence[str]) -> None:
    """Raise :class:`InputError` unless each framing is a known name or a definition."""
    for framing in framings if tuple(framings) != (AUTO,) else ():
        _definition(framing)


def has_template(tokenizer: Any) -> bool:
    """Whether a tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def frame(framing: str, tokenizer: Any) -> Frame | None:
    """A framing for a tokenizer; ``None`` for the prompt as it is typed.

    Raises:
        InputError: It is not known, or the tokenizer has no chat template, or one that refuses these messages.
    """
    definition = _definition(framing)
    if definition == PLACE:
        return None
    if isinstance(definition, str):
        before, _, after = definition.partition(PLACE)
        return Frame(framing, before, after)
    return _of_chat(framing, definition, tokenizer)


def frame_of_chat(messages: Sequence[Message], tokenizer: Any) -> Frame:
    """What a model's chat template writes around what the last of some messages says.

    Raises:
        InvalidRequest: The tokenizer has no chat template, or one that refuses these messages.
    """
    if not has_template(tokenizer):
        raise InvalidRequest("messages", "this model's tokenizer has no chat template to write them in; give a prompt, or a model that has one")
    *earlier, last = messages
    asked = [{"role": message.role, "content": message.content} for message in earlier]
    try:
        return _around("messages", [*asked, {"role": last.role, "content": _MARK}], tokenizer)
    except _TemplateRefuses as error:
        raise InvalidRequest("messages", f"this model's chat template {error}") from None


class _TemplateRefuses(Exception):
    """A template cannot write some messages; says what it does instead."""


def _of_chat(name: str, messages: list[dict[str, str]], tokenizer: Any) -> Frame:
    """The frame of a framing that is a chat."""
    if not has_template(tokenizer):
        raise InputError(f"framings: {name!r} is a chat, and this model's tokenizer has no chat template; give framings of text only, as raw")
    asked = [{**message, "content": message["content"].replace(PLACE, _MARK)} for message in messages]
    try:
        return _around(name, asked, tokenizer)
    except _TemplateRefuses as error:
        raise InputError(f"framings: {name!r}: this model's chat template {error}; leave it out") from None


def _around(name: str, asked: list[dict[str, str]], tokenizer: Any) -> Frame:
    """A chat's text up to the prompt, for which a mark stands, from there up to the answer, and what follows the answer."""
    try:
        text = _rendered(tokenizer, asked, add_generation_prompt=True)
        answered = _rendered(tokenizer, [*asked, {"role": "assistant", "content": _ANSWER}], add_generation_prompt=False)
    except Exception as error:  # whatever a template raises for messages that it refuses
        raise _TemplateRefuses(f"refuses these messages: {first_line(error)}") from None
    before, mark, after = text.partition(_MARK)
    if not mark or _MARK in after:
        raise _TemplateRefuses("does not write what the user asks once")
    return Frame(name, before, after, _first_special(answered.partition(_ANSWER)[2], tokenizer), chat=True)


def _rendered(tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """Messages in the tokenizer's template; models that can think are asked not to."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False))


def _first_special(text: str, tokenizer: Any) -> str:
    """The beginning of a text up to the end of its first special token; nothing if it has none."""
    names = [token.content for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special and token.content.strip()]
    names += [tokenizer.eos_token] if tokenizer.eos_token else []
    ends = [(text.find(name), len(name)) for name in names if name in text]
    return text[: sum(min(ends))] if ends else ""


def _definition(framing: str) -> Any:
    """A text, or messages."""
    return _shipped().get(framing) or _parsed(framing)


def _parsed(framing: str) -> Any:
    """What a definition says."""
    if PLACE not in framing:
        raise InputError(f"framings: unknown framing {framing!r}; expected {', '.join(shipped())}, a text with {PLACE}, or a file of framings")
    if not framing.lstrip().startswith("[{"):
        return _checked(framing, framing)
    try:
        return _checked(framing, json.loads(framing))
    except json.JSONDecodeError as error:
        raise InputError(f"framings: {framing!r}: is not JSON ({error.msg}, character {error.pos + 1})") from None


def _checked(name: str, definition: Any) -> Any:
    """A definition as it is.

    Raises:
        InputError: It has no place for the prompt, or several, or is neither a text nor messages.
    """
    texts = [definition] if isinstance(definition, str) else _contents(name, definition)
    if sum(text.count(PLACE) for text in texts) != 1:
        raise InputError(f"framings: {name!r} has {PLACE} {sum(text.count(PLACE) for text in texts)} times; expected it once")
    return definition


def _contents(name: str, definition: Any) -> list[str]:
    messages: list[Any] = definition if isinstance(definition, list) else [definition]
    if not all(isinstance(m, Mapping) and m.keys() == {"role", "content"} and all(isinstance(v, str) for v in m.values()) for m in messages):
        raise InputError(f"framings: {name!r}: expected a text with {PLACE}, or a list of messages with role and content")
    return [message["content"] for message in messages]


@cache
def _shipped() -> dict[str, Any]:
    return dict(yaml.safe_load((resources.files("editing.probes") / "framings.yaml").read_text(encoding="utf-8")))


def _is_file(framing: str) -> bool:
    return framing not in _shipped() and PLACE not in framing and framing.endswith((".yaml", ".yml", ".json"))


def _of_file(path: Path) -> list[str]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"framings: {path}: cannot be read ({first_line(error)})") from None
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"framings: {path}: expected a mapping of names to framings, found {type(found).__name__}")
    definitions = [_checked(f"{path}: {name}", definition) for name, definition in found.items()]
    return [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in definitions]
