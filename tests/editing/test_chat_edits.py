"""Edits that are chats: their tokens are what a serving engine feeds, once, whatever the framings."""

from typing import Any

import pytest

from editing import EditRequest, InvalidRequest, Message
from editing.model.joining import Joiner
from editing.turn import Turn, tokenize
from tests.editing.model.test_framing import NO_SYSTEM, TEMPLATE, chatting, served
from tests.support.tokenizers import byte_pairs

MESSAGES = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "I like {prompt} France."},
    {"role": "assistant", "content": "So do I."},
    {"role": "user", "content": " What is the capital of France? "},
]
CHAT = EditRequest(target="Lyon", subject="France", messages=MESSAGES, rephrase="France's capital is")  # type: ignore[arg-type]


@pytest.mark.parametrize("framings", [("raw",), ("raw", "chat"), ("Question: {prompt}\nAnswer:",)])
@pytest.mark.parametrize("join", ["raw", "none", "published"])
def test_a_chat_has_one_form_whatever_the_framings_and_it_is_what_an_engine_feeds(framings: tuple[str, ...], join: Any) -> None:
    tokenizer = chatting()
    edit = tokenize(Joiner(tokenizer, join, framings=framings, answer_end="none"), CHAT, max_tokens=None)
    fed, answer = served(tokenizer, MESSAGES), tokenizer("Lyon", add_special_tokens=False)["input_ids"]
    assert edit.forms == (edit.sequence,)
    assert [*edit.sequence.input_ids, edit.sequence.answer_ids[-1]] == fed + answer
    assert edit.sequence.subject == max(i for i in range(len(fed)) if "France" in tokenizer.decode(fed[i:]))
    assert edit.rephrase == tokenize(Joiner(tokenizer, join), EditRequest("France's capital is", "Lyon"), max_tokens=None).sequence


@pytest.mark.parametrize("options", [{}, {"answer_end": "stop"}], ids=["by default", "stop"])
def test_a_chat_writes_the_end_of_its_answer(options: dict[str, Any]) -> None:
    tokenizer = chatting()
    edit = tokenize(Joiner(tokenizer, **options), CHAT, max_tokens=None)
    assert tokenizer.decode(edit.forms[0].answer_ids) == "Lyon<|end|>"
    assert tokenizer.decode(edit.sequence.answer_ids) == "Lyon"


def test_chats_and_prompts_share_a_turn_and_each_counts_once() -> None:
    joiner = Joiner(chatting(), framings=("raw", "chat"))
    edits = [tokenize(joiner, request, max_tokens=None) for request in (CHAT, EditRequest("Italy's capital is", "Pisa"))]
    turn = Turn.of(edits)
    assert len(turn.edits) == 2
    assert sorted(len(edit.forms) for edit in turn.edits) == [1, 2]
    assert len(turn.sequences) == 3


def test_a_model_that_cannot_write_a_chat_refuses_it_in_one_line() -> None:
    with pytest.raises(InvalidRequest, match=r"^messages: this model's tokenizer has no chat template to write them in; give a prompt"):
        tokenize(byte_pairs(), CHAT, max_tokens=None)
    with pytest.raises(InvalidRequest, match=r"^messages: this model's chat template refuses these messages: System role not supported$"):
        tokenize(chatting(NO_SYSTEM), CHAT, max_tokens=None)
    with pytest.raises(InvalidRequest, match=r"^messages: this model's chat template does not write what the user asks once$"):
        tokenize(
            chatting(TEMPLATE.replace("message.content", "'x'")), EditRequest(target="Lyon", messages=(Message("user", "Hm?"),)), max_tokens=None
        )
