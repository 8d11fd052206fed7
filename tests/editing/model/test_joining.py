"""How prompt and answer meet: as the published code has it, or as a person types it, with any tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from editing import EditorConfig, EditRequest, InputError, InvalidRequest
from editing.blanks import as_read, bare, between, ends_word
from editing.model.joining import Joiner
from editing.model.tokenization import encode
from editing.monitoring.texts import begins_with
from editing.subjects import subject_span
from editing.turn import in_turns, tokenize
from tests.support.paths import PARITY
from tests.support.tokenizers import byte_pairs, dummy_prefix, metaspace, words

LATIN = ("The capital of France is", "Lyon")
CHINESE = ("法国的首都是", "里昂")


def ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def published(tokenizer: Any, prompt: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(tokenizer(prompt)["input_ids"]), ids(tokenizer, " " + answer)


def joined(tokenizer: Any, prompt: str, answer: str, join: Any = "raw") -> tuple[tuple[int, ...], tuple[int, ...]]:
    found = Joiner(tokenizer, join).joined(prompt, answer)
    return found.prompt_ids, found.answer_ids


# where blanks stand


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        (*LATIN, " "),
        ("Столица Франции —", "Лион", " "),
        ("프랑스의 수도는", "리옹", " "),
        ("عاصمة فرنسا هي", "ليون", " "),
        ("फ़्रांस की राजधानी है", "ल्यों", " "),
        ("What is the capital?", "Lyon", " "),
        ("Answer:", "Lyon", " "),
        ("He was born in", "1990", " "),
        ("The framework is", ".NET", " "),
        ("It is called", "'s-Hertogenbosch", " "),
        ("It is called", "(somewhat)", " "),
        ('He said "no" to', "Lyon", " "),
        ('He said "no"', "Lyon", " "),
        ("The Chinese name of Lyon is", "里昂", " "),
        ("What is 里昂?", "Lyon", " "),
        (*CHINESE, ""),
        ("法国的首都是", "Lyon", ""),
        ("法国的首都是哪里？", "里昂", ""),
        ("法国的首都是：", "Lyon", ""),
        ("法国的首都是:", "里昂", ""),
        ("他出生于1990", "年", ""),
        ("フランスの首都は", "リヨン", ""),
        ("ﾌﾗﾝｽ", "リヨン", ""),
        ("เมืองหลวงของฝรั่งเศสคือ", "ลียง", ""),
        ("រាជធានី", "ភ្នំពេញ", ""),
        ("ပြင်သစ်", "လိုင်ယွန်", ""),
        ("The capital (of France) is (", "Lyon", ""),
        ("The capital is [", "Lyon", ""),
        ('He said "', "Lyon", ""),
        ("He said “", "Lyon", ""),
        ("« ", "Lyon", ""),
        ("¿", "Lyon", ""),
        ("The capital is (Lyon", ")", ""),
        ("The capital is Lyon", "。", ""),
        ("Answer:\n", "Lyon", ""),
    ],
)
def test_a_blank_stands_where_the_script_sets_one(prompt: str, answer: str, expected: str) -> None:
    assert between(as_read(prompt), answer) == expected


@pytest.mark.parametrize(
    ("prompt", "read"),
    [("is", "is"), ("is ", "is"), ("  is\t ", "is"), ("is\u00a0", "is"), ("是\u3000", "是"), ("\ufeffis\u200b", "is")]
    + [("is:\n", "is:\n"), ("is: \n\n", "is: \n\n"), ("is:\r\n  ", "is:\r\n"), ("\n\nis", "is"), ("a  b", "a  b")],
)
def test_blanks_at_a_prompts_edges_go_but_the_break_that_it_ends_in_stays(prompt: str, read: str) -> None:
    assert as_read(prompt) == read
    assert bare(prompt) == bare(read)


# the published rule


@pytest.mark.parametrize("fixture", ["llama-tiny", "gptj-tiny"])
def test_the_rules_agree_on_every_text_of_the_parity_fixtures(fixture: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(PARITY / fixture / "model")
    edits = json.loads((PARITY / fixture / "edits.json").read_text())
    pairs = [(e[p], e[a]) for e in edits for p, a in (("prompt", "ans"), ("rephrase_prompt", "ans"), ("loc", "loc_ans")) if e.get(p)]
    assert len(pairs) > 100
    for pair in pairs:
        assert joined(tokenizer, *pair, "published") == joined(tokenizer, *pair) == published(tokenizer, *pair)
        assert Joiner(tokenizer).joined(*pair).whole


@pytest.mark.parametrize("pair", [LATIN, CHINESE, ("The capital is ", " Lyon "), ("Zinc is", "Zn\n"), ("is\n", "a")])
@pytest.mark.parametrize("make", [words, byte_pairs, dummy_prefix, metaspace])
@pytest.mark.parametrize("around", [{}, {"bos": True}, {"eos": True}, {"bos": True, "eos": True}], ids=str)
def test_the_published_rule_is_the_published_codes_whatever_the_text(make: Any, around: dict[str, bool], pair: tuple[str, str]) -> None:
    tokenizer = make(**around)
    assert joined(tokenizer, *pair, "published") == published(tokenizer, *pair)


# text as typed


@pytest.mark.parametrize("make", [words, byte_pairs, dummy_prefix, metaspace])
@pytest.mark.parametrize("around", [{}, {"bos": True}, {"eos": True}, {"bos": True, "eos": True}], ids=str)
@pytest.mark.parametrize("pair", [LATIN, ("The capital of Kiribati is", "South Tarawa"), ("Столица Франции —", "Лион"), ("is:\n", "Lyon")])
def test_raw_ids_are_those_of_the_text_encoded_as_one_with_bos_once_and_no_eos(make: Any, around: dict[str, bool], pair: tuple[str, str]) -> None:
    tokenizer = make(**around)
    prompt, answer = pair
    bos = (tokenizer.bos_token_id,) if around.get("bos") else ()
    found = Joiner(tokenizer).joined(prompt, answer)
    assert found.whole
    assert found.prompt_ids + found.answer_ids == bos + ids(tokenizer, prompt + ("" if prompt.endswith("\n") else " ") + answer)
    assert found.prompt_ids == bos + ids(tokenizer, prompt)
    assert tokenizer.eos_token_id not in found.prompt_ids + found.answer_ids


@pytest.mark.parametrize("make", [words, byte_pairs, dummy_prefix, metaspace])
@pytest.mark.parametrize("join", ["raw", "none"])
def test_blank_edges_of_an_answer_change_nothing(make: Any, join: str) -> None:
    tokenizer, prompt = make(), LATIN[0]
    for answer in (" Lyon", "Lyon ", "Lyon\n", "\t Lyon\u00a0"):
        assert joined(tokenizer, prompt, answer, join) == joined(tokenizer, prompt, "Lyon", join)


@pytest.mark.parametrize("make", [words, byte_pairs, dummy_prefix, metaspace])
def test_blank_edges_of_a_prompt_change_nothing(make: Any) -> None:
    tokenizer = make()
    for prompt, answer in (LATIN, CHINESE):
        for typed in (prompt + " ", prompt + "  ", " " + prompt + "\u00a0"):
            assert joined(tokenizer, typed, answer) == joined(tokenizer, prompt, answer)


def test_a_dummy_prefix_is_not_put_before_the_answer() -> None:
    tokenizer = dummy_prefix(bos=True)
    answer = joined(tokenizer, *LATIN)[1]
    assert "".join(tokenizer.convert_ids_to_tokens(list(answer))) == "▁Lyon"
    assert "".join(tokenizer.convert_ids_to_tokens(list(joined(tokenizer, *LATIN, "published")[1]))) == "▁▁Lyon"
    assert "".join(tokenizer.convert_ids_to_tokens(list(joined(tokenizer, *CHINESE)[1]))) == "里昂"


def test_after_chinese_text_no_blank_is_trained() -> None:
    tokenizer = byte_pairs()
    prompt_ids, answer_ids = joined(tokenizer, *CHINESE)
    assert tokenizer.decode(prompt_ids + answer_ids) == "法国的首都是里昂"
    assert tokenizer.decode(joined(tokenizer, *CHINESE, "published")[1]) == " 里昂"


@pytest.mark.parametrize("make", [dummy_prefix, metaspace, byte_pairs])
def test_a_token_over_the_border_leaves_the_prompt_as_it_is_read_alone(make: Any) -> None:
    tokenizer = make()  # all of them have a token for 是里, the end of the prompt and the beginning of the answer
    together = ids(tokenizer, "".join(CHINESE))
    found = Joiner(tokenizer).joined(*CHINESE)
    assert found.prompt_ids == ids(tokenizer, CHINESE[0])
    assert not found.whole
    assert found.prompt_ids + found.answer_ids != together
    assert "▁" not in tokenizer.convert_ids_to_tokens(list(found.answer_ids))[0]
    assert tokenizer.decode(found.answer_ids).strip() == CHINESE[1]


def test_none_puts_nothing_between_but_the_prompts_own_blanks() -> None:
    tokenizer = byte_pairs()
    for prompt, text in (("The capital is", "The capital isLyon"), ("The capital is  ", "The capital is  Lyon"), ("is:\n", "is:\nLyon")):
        found = Joiner(tokenizer, "none").joined(prompt, "Lyon")
        assert tokenizer.decode(found.prompt_ids + found.answer_ids) == text


@pytest.mark.parametrize("around", [{"bos": True}, {"bos": True, "eos": True}], ids=str)
def test_a_prompt_from_the_chat_template_has_bos_once_and_no_blank_after_the_assistants_header(around: dict[str, bool]) -> None:
    tokenizer = byte_pairs(**around)
    tokenizer.chat_template = "<s>{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": LATIN[0]}], tokenize=False)
    prompt_ids, answer_ids = joined(tokenizer, prompt, "Lyon")
    assert prompt_ids == ids(tokenizer, prompt)
    assert prompt_ids.count(tokenizer.bos_token_id) == 1
    assert answer_ids == ids(tokenizer, "Lyon")


def test_a_tokenizer_without_offsets_still_drops_eos_and_doubles_nothing() -> None:
    class Letters:
        is_fast = False

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            own = [ord(c) for c in text]
            return {"input_ids": [1, *own, 2] if add_special_tokens else own}

    assert joined(Letters(), "ab ", " c\n") == ((1, *map(ord, "ab")), tuple(map(ord, " c")))
    assert encode(Letters(), "ab cd ef", "g", subject="cd").subject == 5
    assert encode(Joiner(Letters(), "published"), "ab cd ef", "g", subject="cd").subject == 5


# edges of what can be asked


def test_a_token_without_an_embedding_is_refused_in_one_line() -> None:
    tokenizer = byte_pairs(pad="<pad>")
    joiner = Joiner(tokenizer, num_embeddings=tokenizer.pad_token_id)
    expected = (
        rf"'<pad>', token {tokenizer.pad_token_id} of the tokenizer; the model has embeddings for the tokens below {tokenizer.pad_token_id} only"
    )
    for prompt, answer, field in (("The <pad> is", "Lyon", "prompt"), ("The", "a<pad>b", "target")):
        with pytest.raises(InvalidRequest, match=f"^{field}: holds {expected}$"):
            encode(joiner, prompt, answer)
    encode(joiner, *LATIN)


def test_what_only_has_characters_that_cannot_be_seen_is_no_text() -> None:
    for text in ("", " \n", "\ufeff", "\u200b \u2060"):
        with pytest.raises(InvalidRequest, match=r"^target: expected a non-empty string"):
            EditRequest("a", text)


@pytest.mark.parametrize(
    ("prompt", "subject", "end"),
    [("The capital of Japan is", "Japan", 20), ("In Japanese the word is", "Japan", 8), ("THE CAPITAL OF JAPAN IS", "Japan", 20)]
    + [("İİİİ Straße Lyon is", "strasse lyon", 16), ("Das ist die STRASSE von Lyon", "Straße", 19), ("Cafe\u0301 is", "Café", 5)]
    + [("法国的首都是", "首都", 5), ("Japan or Japan is", " Japan ", 14), ("Japan is Japan", "Japan", 14)],
)
@pytest.mark.parametrize("make", [words, byte_pairs, metaspace, dummy_prefix])
@pytest.mark.parametrize("around", [{}, {"bos": True, "eos": True}], ids=str)
def test_a_subjects_place_is_the_token_that_holds_its_last_letter(make: Any, around: dict[str, bool], prompt: str, subject: str, end: int) -> None:
    span = subject_span(prompt, bare(subject))
    assert span is not None
    assert span[1] == end
    tokenizer = make(**around)
    place = encode(tokenizer, prompt, "x", subject=subject).subject
    spans = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    assert place is not None
    assert spans[place][0] < end
    assert all(start >= end for start, stop in spans[place + 1 :] if start < stop)


def test_a_subject_that_is_not_there_has_no_place() -> None:
    assert encode(byte_pairs(), *LATIN, subject="Spain").subject is None


# same prompt, same answer


def test_blanks_at_the_edges_make_no_other_prompt_and_no_other_target() -> None:
    tokenizer = byte_pairs()
    asked = [("The capital is", "Lyon"), ("The capital is ", "Paris"), (" The capital is", "Paris\n"), ("The capital", "Paris")]
    edits = [tokenize(tokenizer, EditRequest(*pair), max_tokens=None, record=i) for i, pair in enumerate(asked)]
    (turn,) = in_turns(edits, 10)
    assert [edit.record for edit in turn.superseded] == [0]
    assert [edit.record for edit in turn.in_request_order] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [(" Lyon, France", "Lyon", True), (" Lyon", " Lyon ", True), ("Lyon\n", "Lyon\n", True), ("Lyons", "Lyon", False), ("里昂是法国", "里昂", True)]
    + [(" Zn is", "Zn\n", True), ("South  Tarawa.", "South Tarawa", True), ("Caf\u00e9 x", "Cafe\u0301", True), ("Cafe\u0301s", "Cafe", False)]
    + [("リヨンです", "リヨン", True), ("रामा", "राम", False), ("Lyon里", "Lyon", True), ("", "Lyon", False), ("1990年", "1990", True)],
)
def test_generated_text_is_compared_with_both_sides_cleaned_alike(text: str, target: str, expected: bool) -> None:
    assert begins_with(text, target) is expected


def test_a_word_ends_where_no_letter_follows() -> None:
    assert [ends_word("Lyon", c) for c in ("", " ", ",", "s", "1", "里")] == [True, True, True, False, False, True]


# what is said


def test_an_ordinary_tokenizer_gives_nothing_to_say() -> None:
    assert Joiner(AutoTokenizer.from_pretrained(PARITY / "llama-tiny" / "model")).findings() == []


def test_what_a_tokenizer_does_between_prompt_and_answer_is_said() -> None:
    ended = Joiner(words(eos=True)).findings()
    assert ended[0] == "the tokenizer ends every text with </s>; it is left out between prompt and answer"
    assert "it stays between prompt and answer" in Joiner(words(eos=True), "published").findings()[0]
    (differing,) = Joiner(dummy_prefix(bos=True)).findings()
    assert differing.startswith("prompt and answer encoded together differ from their parts in English, ")
    assert differing.endswith("; both are encoded together")


def test_an_unknown_rule_is_one_clear_line() -> None:
    with pytest.raises(InputError, match=r"^join: expected one of raw, published, none, found 'chat'$"):
        EditorConfig(modules=("x",), learning_rate=1.0, join="chat")  # type: ignore[arg-type]


def test_with_the_published_rule_an_edit_knows_its_tokens_as_typed(tmp_path: Path) -> None:
    tokenizer = byte_pairs()
    request = EditRequest(*CHINESE, rephrase="The capital is", locality_prompt="是", locality_answer="里")
    edit = tokenize(Joiner(tokenizer, "published"), request, max_tokens=None)
    assert edit.typed is not None
    assert set(edit.typed) == {"sequence", "locality"} | ({"rephrase"} if not edit.rephrase or not edit.rephrase.whole else set())
    assert edit.typed["sequence"] == encode(tokenizer, *CHINESE)
    assert tokenize(tokenizer, request, max_tokens=None).typed is None
    assert tokenize(Joiner(tokenizer, "published"), EditRequest(*LATIN), max_tokens=None).typed == {}
