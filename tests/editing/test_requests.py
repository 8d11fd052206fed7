"""What a request accepts."""

from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editing import EditRequest, InvalidRequest, Message
from editing.datasets.writing import request_row

OPTIONAL = ("id", "subject", "rephrase", "locality_prompt")


@pytest.mark.parametrize("field", ["prompt", "target"])
@pytest.mark.parametrize("value", [None, "", " ", "\n\t", 3, ["Rome"], b"Rome", "\ud800"])
def test_prompt_and_target_must_be_texts_with_something_in_them(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: ") as caught:
        EditRequest(**{"prompt": "Italy's capital is", "target": "Rome", field: value})
    assert caught.value.field == field


@pytest.mark.parametrize("field", OPTIONAL)
@pytest.mark.parametrize("value", ["", "  ", 3, "\udfff"])
def test_a_probe_may_be_absent_but_not_unusable(field: str, value: object) -> None:
    assert getattr(EditRequest("Italy's capital is", "Rome"), field) is None
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        EditRequest("Italy's capital is", "Rome", **{field: value})


def test_a_locality_answer_needs_its_question() -> None:
    with pytest.raises(InvalidRequest, match="locality_answer: given without a locality_prompt"):
        EditRequest("Italy's capital is", "Rome", locality_answer="Paris")


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_any_other_text_is_kept_to_the_letter(prompt: str, target: str) -> None:
    request = EditRequest(prompt, target)
    assert (request.prompt, request.target) == (prompt, target)


CHAT = (
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "I plan a trip to Italy."},
    {"role": "assistant", "content": "How nice!"},
    {"role": "user", "content": "What is its capital?"},
)


def test_a_chat_takes_the_place_of_a_prompt_and_is_written_to_the_ledger_and_read_again() -> None:
    request = EditRequest(target="Rome", messages=CHAT)  # type: ignore[arg-type]
    assert request.prompt == "What is its capital?"
    assert request.asked == tuple(Message(**message) for message in CHAT)
    assert EditRequest(**request_row(request)) == request
    assert EditRequest(**asdict(request)) == request
    assert hash(request) == hash(replace(request))


def test_requests_ask_the_same_if_all_that_was_said_is_the_same() -> None:
    plain, alone = EditRequest("What is its capital? ", "Rome"), EditRequest(target="Rome", messages=CHAT[-1:])  # type: ignore[arg-type]
    whole, other = (EditRequest(target="Rome", messages=messages) for messages in (CHAT, CHAT[1:]))  # type: ignore[arg-type]
    assert plain.asks_as(alone)
    assert not plain.asks_as(whole)
    assert not whole.asks_as(other)
    assert whole.asks_as(EditRequest(target="Milan", messages=CHAT))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "expected a list of messages with role and content, found an empty list"),
        ("Hello", "expected a list of messages with role and content, found str"),
        (["Hello"], "message 1: expected an object with role and content, found str"),
        ([{"role": "user"}], "message 1: content: missing; expected a non-empty string"),
        ([{"role": "user", "content": " "}], "message 1: content: expected a non-empty string, found only blanks"),
        ([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}], "message 1: content: expected a non-empty string, found list"),
        ([{"role": "tool", "content": "4"}], "message 1: role: expected system, user, assistant, found 'tool'"),
        ([{"role": "user", "content": "a", "name": "Ann"}], "message 1: expected role and content alone, found 'name'"),
        ([CHAT[0]], "expected the last message by the user, found one by the system"),
        (CHAT[:3], "expected the last message by the user, found one by the assistant; its answer belongs in target"),
        (CHAT[2:], "message 1: expected one by the user, found one by the assistant"),
        ([CHAT[1], CHAT[0], CHAT[3]], "message 2: expected one by the assistant, found one by the system"),
        ([CHAT[1], CHAT[3]], "message 2: expected one by the assistant, found one by the user"),
    ],
)
def test_a_chat_that_is_none_is_one_line(messages: Any, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        EditRequest(target="Rome", messages=messages)
    assert str(caught.value) == f"messages: {words}"


def test_a_prompt_beside_a_chat_is_one_line() -> None:
    with pytest.raises(InvalidRequest, match=r"^messages: given beside a prompt; expected one of the two$"):
        EditRequest("What is the capital of Italy?", "Rome", messages=CHAT)  # type: ignore[arg-type]
