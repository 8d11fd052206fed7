"""What a record asks is understood, in whatever form it comes; and what nobody reads is known."""

import json
from pathlib import Path
from typing import Any

import pytest

from editing import EditRequest, InputError
from editing.datasets import BadRecord, EditFile, Notes, NumberedRequest
from tests.support.edit_files import CASES, FLAT, JSONL, NESTED
from tests.support.more_formats import BIZSRE, CKNOWEDIT, MLAKE, MORE, RIPPLE

CAPITAL = {"prompt": "The capital of Italy is", "target": "Rome"}


def read(tmp_path: Path, *records: dict[str, Any], format: str = "auto") -> list[NumberedRequest | BadRecord]:
    path = tmp_path / "edits.json"
    path.write_text(json.dumps(records))
    return list(EditFile(path, format))


def good(tmp_path: Path, record: dict[str, Any], format: str = "auto") -> NumberedRequest:
    (found,) = read(tmp_path, record, format=format)
    assert isinstance(found, NumberedRequest), found
    return found


def reason(tmp_path: Path, record: dict[str, Any]) -> str:
    (found,) = read(tmp_path, record)
    assert isinstance(found, BadRecord), found
    assert len(found.reason.splitlines()) == 1
    return found.reason


@pytest.mark.parametrize("case", [*CASES, *MORE])
def test_of_a_record_of_any_format_no_field_is_left_unread(case: str, tmp_path: Path) -> None:
    _, record, _ = {**CASES, **MORE}[case]
    assert good(tmp_path, record).notes.unread == ()


# --- values in other forms


@pytest.mark.parametrize(
    "value", [["Rome"], {"str": "Rome"}, {"text": "Rome"}, {"str": "Rome", "id": "Q220"}, [{"value": "Rome", "aliases": ["Roma"]}]]
)
@pytest.mark.parametrize("record", [JSONL, FLAT, NESTED["requested_rewrite"]])
def test_a_target_may_be_nested(value: Any, record: dict[str, Any], tmp_path: Path) -> None:
    name = "target" if "target" in record else "target_new"
    assert good(tmp_path, {**record, name: value}).request.target == "Rome"


def test_a_nested_record_may_have_plain_texts(tmp_path: Path) -> None:
    rewrite = {"prompt": "{}'s capital is", "subject": "Italy", "target_new": "Rome", "target_true": "Madrid"}
    request = good(tmp_path, {**NESTED, "requested_rewrite": [rewrite], "paraphrase_prompts": "The capital of Italy is"}).request
    assert (request.prompt, request.target, request.locality_answer) == ("Italy's capital is", "Rome", "Madrid")
    assert request.rephrase == "The capital of Italy is"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (["Rome", "Milan"], "target: expected one text, found a list of 2; keep the one that is meant"),
        ({"en": "Rome"}, "target: expected a non-empty string, or an object with one as 'str', found an object with 'en'"),
        ({"str": "Rome", "text": "Milan"}, "target: expected a non-empty string, or an object with one as 'str', found an object with 'str', 'text'"),
        ({"str": 3}, "target: expected a non-empty string, found int"),
        ([], "target: expected a non-empty string, found list"),
    ],
)
def test_which_text_is_meant_is_not_guessed(value: Any, said: str, tmp_path: Path) -> None:
    assert reason(tmp_path, {**CAPITAL, "target": value}).startswith(said)


# --- placeholders in whole records


@pytest.mark.parametrize("field", ["rephrase", "locality_prompt", "persona", "portability_prompt", "multi_hop_prompt"])
def test_placeholders_of_probes_are_filled_too(field: str, tmp_path: Path) -> None:
    answer = {field.replace("prompt", "answer"): "x"} if field.endswith("prompt") else {}
    request = good(tmp_path, {**CAPITAL, "subject": "Italy", field: "{} has", **answer}).request
    assert getattr(request, field) in ("Italy has", ("Italy has",))
    said = reason(tmp_path, {**CAPITAL, field: "{} has", **answer})
    assert said.startswith(f"{field}: holds the placeholder {{}}, and the record has no subject to put there")


def test_a_placeholder_is_named_by_the_records_own_field(tmp_path: Path) -> None:
    assert reason(tmp_path, {"src": "The mayor of [X] is", "alt": "Ada"}).startswith("src: holds the placeholder [X]")


def test_the_prompt_of_a_rewrite_has_room_for_its_subject_whatever_else_it_says(tmp_path: Path) -> None:
    rewrite = {"prompt": "In Rome, the x = {} of Rome is", "subject": "Rome", "target_new": "x"}
    assert good(tmp_path, {"requested_rewrite": rewrite}).request.prompt == "In Rome, the x = Rome of Rome is"


# --- probes


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"portability": {"Reasoning": ["a"]}}, "portability.Reasoning: expected objects with prompt and ground_truth, found list of str"),
        (
            {"portability": {"one_hop": {"prompt": ["a", "b"], "ground_truth": ["c"]}}},
            "portability.one_hop.ground_truth: expected one answer for each",
        ),
        ({"portability_prompt": ["a", "b"], "portability_answer": ["c"]}, "portability_answer: expected one answer for each question, found 1 for 2"),
        ({"portability": {"one_hop": {"prompt": "", "answer": "c"}}}, "portability: expected a non-empty string"),
    ],
)
def test_probes_that_cannot_be_asked_cost_the_record(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert reason(tmp_path, {**CAPITAL, **fields}).startswith(said)


def test_the_locality_question_of_the_relation_goes_before_the_forgotten_one(tmp_path: Path) -> None:
    kinds = {"Other": [{"prompt": "a"}], "Forgetfulness": [{"prompt": "b"}], "Relation_Specificity": [{"prompt": "c", "ground_truth": "d"}]}
    request = good(tmp_path, {**CAPITAL, "locality": kinds}).request
    assert (request.locality_prompt, request.locality_answer) == ("c", "d")


def test_what_is_not_asked_is_counted(tmp_path: Path) -> None:
    notes = good(tmp_path, NESTED).notes
    assert dict(notes.not_asked) == {"paraphrase_prompts": 1, "neighborhood_prompts": 1}
    assert dict(good(tmp_path, RIPPLE).notes.not_asked) == {"Relation_Specificity": 1, "Compositionality_I": 1}


# --- unread fields


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("locality_promt", "locality_prompt"),
        ("Subject", "subject"),
        ("rephrase-prompt", "rephrase_prompt"),
        ("paraphrase_promts", "paraphrase_prompts"),
        ("portabilty_prompt", "portability_prompt"),
        ("weather", None),
    ],
)
def test_a_field_that_nobody_reads_is_known_with_what_it_resembles(name: str, near: str | None, tmp_path: Path) -> None:
    assert good(tmp_path, {**CAPITAL, name: "x"}).notes.unread == ((name, near),)


def test_a_field_without_a_value_is_not_missed(tmp_path: Path) -> None:
    assert good(tmp_path, {**CAPITAL, "weather": None, "more": "", "most": [], "else": {}, "nan": float("nan")}).notes == Notes()


def test_fields_within_objects_are_known_by_their_path(tmp_path: Path) -> None:
    record = {"requested_rewrite": {**NESTED["requested_rewrite"], "targt": "x"}, "case_id": 1}
    assert good(tmp_path, record).notes.unread == (("requested_rewrite.targt", "target"),)
    assert good(tmp_path, {**CAPITAL, "portability": {"about": {"who": 1}}}).notes.unread == (("portability.about", None),)


def test_fields_that_no_edit_needs_are_known_apart(tmp_path: Path) -> None:
    notes = good(tmp_path, {**NESTED, "generation_prompts": ["a"], "attribute_prompts": ["b"], "pararel_idx": 3}).notes
    assert (notes.unread, set(notes.unused)) == ((), {"generation_prompts", "attribute_prompts", "pararel_idx"})


# --- edits that change nothing


@pytest.mark.parametrize(
    ("record", "remark"),
    [
        ({**FLAT, "ground_truth": ["rome "]}, "the target is the answer from before (ground_truth)"),
        (
            {"requested_rewrite": {**NESTED["requested_rewrite"], "target_true": {"str": "Rome"}}},
            "the target is the answer from before (target_true)",
        ),
        ({**CKNOWEDIT, "target_old": "Rome."}, "the target is the answer from before (target_old)"),
        ({**CAPITAL, "prompt": "The capital of Italy is Rome"}, "the prompt ends with its target"),
        ({**CAPITAL, "prompt": "Is it Rome or Milan?"}, None),
        (FLAT, None),
    ],
)
def test_an_edit_that_seems_to_change_nothing_is_remarked(record: dict[str, Any], remark: str | None, tmp_path: Path) -> None:
    assert good(tmp_path, record).notes.remarks == ((remark,) if remark else ())


# --- further data sets


def test_a_ripple_edit_is_cut_where_its_object_begins(tmp_path: Path) -> None:
    def cut(statement: str, original: str | None = None) -> tuple[str, str]:
        edit = {"prompt": statement} | ({} if original is None else {"original_fact": {"prompt": original}})
        request = good(tmp_path, {"example_type": "recent", "edit": edit}).request
        return request.prompt, request.target

    assert cut("The names of the siblings of Ada are Bob Smith.") == ("The names of the siblings of Ada are", "Bob Smith")
    assert cut("Hamlet is followed by Macbeth.") == ("Hamlet is followed by", "Macbeth")
    assert cut("The author of What is Art is Leo.") == ("The author of What is Art is", "Leo")
    assert cut("The anthem of X is Love is all.", "The anthem of X is Hymn.") == ("The anthem of X is", "Love is all")
    assert reason(tmp_path, {"example_type": "recent", "edit": {"prompt": "Nothing here."}}).startswith("edit.prompt: no telling where")


def test_bilingual_zsre_is_edited_in_either_language(tmp_path: Path) -> None:
    request = good(tmp_path, BIZSRE, "bizsre-zh").request
    assert (request.prompt, request.target, request.locality_answer) == ("意大利的首都是", "罗马", "马德里")
    assert request.portability_prompt == ("Italy's capital is", "Its river?", "那里的河是？")


@pytest.mark.parametrize("record", [{"question": "a", "e_prompt": "b", "e_answer": "c"}, {"question": "a", "o_answer": "c"}])
def test_mlakes_multi_hop_questions_are_no_edits(record: dict[str, Any], tmp_path: Path) -> None:
    assert reason(tmp_path, record).startswith("question: is MLaKE's multi-hop question about an edit, not an edit")


def test_one_rewrite_of_several_without_questions_is_as_good_as_with(tmp_path: Path) -> None:
    rewrites = [{**NESTED["requested_rewrite"], "target_new": name} for name in ("Rome", "Milan")]
    found = read(tmp_path, {"case_id": 3, "requested_rewrite": rewrites, "paraphrase_prompts": ["a"]})
    assert [one.request for one in found if isinstance(one, NumberedRequest)] == [
        EditRequest("Italy's capital is", "Rome", id="3-1", subject="Italy"),
        EditRequest("Italy's capital is", "Milan", id="3-2", subject="Italy", rephrase="a"),
    ]


def test_mlake_and_unke_need_no_named_format(tmp_path: Path) -> None:
    assert good(tmp_path, MLAKE).request == good(tmp_path, MLAKE, "mlake").request


# --- records of no known format


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"sub_label": "a", "obj_label": "b", "uuid": "c"}, "facts of ParaRel or LAMA, of which 'ultraedit data build --triples' makes edits"),
        ({"pattern": "[X] is in [Y]", "lemma": "a"}, "templates of ParaRel"),
        ({"subject": "a", "relation": "b", "object": "c"}, "triples, of which 'ultraedit data build --triples' makes edits"),
        ({"question": "a", "answer": "b"}, "questions with answers; '--format unke' takes the answers as targets"),
        ({"promt": "a", "target": "b"}, "perhaps 'promt' for prompt; expected prompt and target at least"),
    ],
)
def test_records_that_are_no_edits_are_called_by_what_they_are(record: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, record)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_questions_with_answers_are_read_where_the_format_is_named(tmp_path: Path) -> None:
    assert good(tmp_path, {"id": 0, "question": "a", "answer": "b", "category": "math"}, "unke").request == EditRequest("a", "b", id="0")
