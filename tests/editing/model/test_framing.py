"""Framings: one fact in several ways of asking, each in the tokens that a serving engine would read."""

from pathlib import Path
from typing import Any

import pytest
import torch

from editing import Editor, EditorConfig, EditRequest, InputError
from editing.model.framing import check_framings, expanded, frame, has_template, resolve_framings, shipped
from editing.model.joining import Joiner
from editing.model.tokenization import encode
from editing.subject_targets import put_in_context
from editing.turn import Turn, tokenize
from tests.support.small_editor import editor, requests
from tests.support.tokenizers import byte_pairs, words

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|user|>{{ message.role }}\n{{ message.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
THINKING = TEMPLATE.replace("assistant\n{% endif", "assistant\n{% if enable_thinking is false %}<think></think>\n{% endif %}{% endif")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE
FRANCE = EditRequest("The capital of France is ", "Lyon", subject="France")


def chatting(template: str = TEMPLATE, tokenizer: Any = None) -> Any:
    tokenizer = tokenizer or byte_pairs(bos=True, eos=True)
    tokenizer.chat_template = template
    return tokenizer


def served(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """What a serving engine feeds the model."""
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False, return_dict=False))


@pytest.mark.parametrize("template", [TEMPLATE, THINKING], ids=["plain", "one that can think"])
@pytest.mark.parametrize("tokenize_as", [byte_pairs, words])
def test_a_chat_is_what_a_serving_engine_feeds_and_the_answer_follows_without_a_blank(template: str, tokenize_as: Any) -> None:
    tokenizer = chatting(template, tokenize_as(bos=True, eos=True))
    prompts = {
        "chat": [{"role": "user", "content": FRANCE.prompt}],
        "chat-system": [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": FRANCE.prompt}],
        "complete": [{"role": "user", "content": "Complete the sentence: " + FRANCE.prompt}],
    }
    for framing, messages in prompts.items():
        sequence = encode(Joiner(tokenizer).framed(framing), FRANCE.prompt, FRANCE.target, subject=FRANCE.subject)
        asked = sequence.input_ids[: sequence.first_row + 1]
        assert list(asked) == served(tokenizer, messages)
        assert sequence.answer_ids == tuple(tokenizer("Lyon", add_special_tokens=False)["input_ids"])
        assert sequence.whole
        assert sequence.subject is not None
        assert tokenizer.decode(sequence.input_ids[sequence.subject]).strip() == "France"


def test_a_text_around_the_prompt_is_read_as_it_would_be_typed() -> None:
    tokenizer = byte_pairs(bos=True, eos=True)
    found = encode(Joiner(tokenizer).framed("question"), "Where is Lyon?", "France", subject="Lyon")
    typed = encode(tokenizer, "Question: Where is Lyon?\nAnswer:", "France", subject="Lyon")
    assert found == typed
    assert encode(Joiner(tokenizer).framed("Q {prompt}\nA "), "Where?", "France") == encode(tokenizer, "Q Where?\nA", "France")


@pytest.mark.parametrize("tokenizer", [chatting(), chatting(THINKING)], ids=["plain", "one that can think"])
def test_a_subject_that_the_frame_says_too_is_found_in_the_prompt(tokenizer: Any) -> None:
    joiner = Joiner(tokenizer).framed("chat")
    place = joiner.place("Who is the assistant of Lyon?", "assistant")
    assert place is not None
    text = joiner.text("Who is the assistant of Lyon?")
    assert text[slice(*place)] == "assistant"
    assert text[place[1] :].startswith(" of Lyon?")
    assert joiner.place("Who?", "assistant") is None


def test_an_end_is_the_end_of_the_turn_in_a_chat_and_a_full_stop_in_a_text() -> None:
    joiner = Joiner(chatting(), framings=("raw", "chat"), answer_end="stop")
    raw, chat = tokenize(joiner, FRANCE, max_tokens=None).forms
    assert joiner.tokenizer.decode(raw.answer_ids) == " Lyon."
    assert joiner.tokenizer.decode(chat.answer_ids) == "Lyon<|end|>"
    plain, framed = joiner.forms
    assert [plain.end(answer) for answer in ("Lyon", "Lyon.", "Where?", "里昂", "里昂。")] == [".", "", "", "。", ""]
    assert framed.end("Lyon.") == "<|end|>"
    edit = tokenize(joiner, FRANCE, max_tokens=None)
    assert joiner.tokenizer.decode(edit.sequence.answer_ids) == " Lyon"  # what is measured is the answer alone


def test_by_default_chats_end_and_other_texts_do_not() -> None:
    joiner = Joiner(chatting(), framings=("raw", "Question: {prompt}\nAnswer:", "chat"))
    raw, asked, chat = tokenize(joiner, FRANCE, max_tokens=None).forms
    assert [joiner.tokenizer.decode(form.answer_ids) for form in (raw, asked, chat)] == [" Lyon", " Lyon", "Lyon<|end|>"]
    assert raw == tokenize(joiner, FRANCE, max_tokens=None).sequence


def test_auto_is_raw_and_chat_where_there_is_a_template() -> None:
    assert resolve_framings(("auto",), chats=has_template(byte_pairs())) == ("raw",)
    assert resolve_framings(("auto",), chats=has_template(chatting())) == ("raw", "chat")
    assert Joiner(chatting(), framings=("raw", "chat")).findings()[-1] == "each edit is written as 'raw' and 'chat'"


def test_framings_of_a_file_and_in_place(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("plain: 'Tell me. {prompt}'\nasked:\n  - {role: user, content: 'What? {prompt}'}\n", encoding="utf-8")
    found = expanded(["raw", str(file)])
    assert found == ("raw", "Tell me. {prompt}", '[{"role": "user", "content": "What? {prompt}"}]')
    check_framings(found)
    tokenizer = chatting()
    joiner = Joiner(tokenizer, framings=found)
    _, plain, asked = tokenize(joiner, FRANCE, max_tokens=None).forms
    assert plain.input_ids == encode(tokenizer, "Tell me. The capital of France is", "Lyon").input_ids
    assert list(asked.input_ids[: asked.first_row + 1]) == served(tokenizer, [{"role": "user", "content": "What? The capital of France is"}])


@pytest.mark.parametrize(
    ("framing", "words"),
    [
        ("chatt", "framings: unknown framing 'chatt'; expected raw, question, chat, chat-system, complete, a text with {prompt}, or a file"),
        ("{prompt} and {prompt}", "has {prompt} 2 times; expected it once"),
        ('[{"role": "user"}] {prompt}', "is not JSON (Extra data, character 20)"),
        ('[{"role": "{prompt}", "text": "a"}]', "expected a text with {prompt}, or a list of messages with role and content"),
        ('[{"role": "{prompt}", "content": "a"}]', "has {prompt} 0 times; expected it once"),
    ],
)
def test_a_wrong_framing_is_one_line(framing: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        check_framings([framing])
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n", "expected a mapping of names to framings, found list"),
        ("a: b\n", "a' has {prompt} 0 times; expected it once"),
        ("a: [", "cannot be read (while parsing a flow node"),
        ("a: 3\n", "expected a text with {prompt}, or a list of messages with role and content"),
        (None, "cannot be read ([Errno 2] No such file or directory"),
    ],
)
def test_a_wrong_file_of_framings_is_one_line(text: str | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        expanded([str(file)])
    assert words in str(error.value)
    assert str(file) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_chat_without_a_template_or_with_one_that_refuses_it_is_one_line() -> None:
    with pytest.raises(InputError, match="framings: 'chat' is a chat, and this model's tokenizer has no chat template"):
        frame("chat", byte_pairs())
    with pytest.raises(InputError, match="'chat-system': this model's chat template refuses these messages: System role not supported; leave it out"):
        frame("chat-system", chatting(NO_SYSTEM))
    assert frame("chat", chatting(NO_SYSTEM)) is not None
    with pytest.raises(InputError, match="'chat': this model's chat template does not write what the user asks once"):
        frame("chat", chatting("{{ messages[0].content }} {{ messages[0].content }}"))
    with pytest.raises(InputError, match="framings: expected each of them once, found raw, raw"):
        EditorConfig(modules=("a",), learning_rate=1.0, framings=("raw", "raw"))


def test_every_shipped_framing_is_a_definition() -> None:
    check_framings(shipped())
    assert shipped()[0] == "raw"
    assert frame("raw", byte_pairs()) is None


# an edit in several forms


def both(**options: Any) -> Editor:
    return editor(framings=("raw", "Question: {prompt}\nAnswer:"), **options)


def test_the_forms_of_all_edits_are_the_turn_longest_first_and_count_as_one_edit_each() -> None:
    one = both()
    turn = Turn.of([tokenize(one.joiner, request, max_tokens=None) for request in requests()])
    lengths = [len(sequence.input_ids) for sequence in turn.sequences]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(turn.places) == [(edit, form) for edit in range(len(requests())) for form in range(2)]
    (report,) = one.apply(requests())
    assert report.edits == len(requests())
    assert report.rows == sum(len(sequence.answer_ids) for sequence in turn.sequences)


def test_both_forms_are_learnt() -> None:
    """Against the same number of turns in which only the raw form is written."""
    losses = {}
    for name, one in {"raw": editor(), "both": both()}.items():
        one.apply(requests(), measure=False)
        asked = both()
        (prepared,) = asked.prepare([Turn.of([tokenize(asked.joiner, request, max_tokens=None) for request in requests()])])
        asked.model.load_state_dict(one.model.state_dict())
        framed = torch.tensor([place[1] == 1 for place in prepared.turn.places])
        rows = asked.capture(prepared)
        owners = torch.tensor([i for i, sequence in enumerate(prepared.turn.sequences) for _ in sequence.answer_ids])
        losses[name] = float(rows.losses[framed[owners]].mean())
    assert losses["both"] < losses["raw"] - 0.1


def test_one_form_gives_the_bits_of_no_framing_at_all() -> None:
    plain, raw = editor(), editor(framings=("raw",))
    plain.apply(requests())
    raw.apply(requests())
    assert plain.digests() == raw.digests()
    assert raw.config.framings == plain.config.framings == ("raw",)


def test_a_context_stands_within_the_frame() -> None:
    one = both()
    turn = Turn.of([tokenize(one.joiner, request, max_tokens=None) for request in requests()])
    moved = put_in_context(turn, "It is said. ", one.joiner, None)
    assert moved.places == turn.places
    for edit in moved.edits:
        raw, framed = (one.tokenizer.decode(form.input_ids, skip_special_tokens=True) for form in edit.forms)
        assert raw.startswith("It is said.")
        assert framed.startswith("Question: It is said.")
