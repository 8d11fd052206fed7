"""Readers: every format comes out right, and nothing that a file can hold stops more than its own record."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editing import EditRequest, InputError
from editing.datasets import FORMATS, BadRecord, EditFile, NumberedRequest
from editing.datasets import records as records_module
from editing.datasets.parts import find_parts, read_parts

DATA = Path(__file__).parents[3] / "shared" / "data"
LOCALITY = {"locality_prompt": "Spain's capital is", "locality_answer": "Madrid"}
EXPECTED = EditRequest("Italy's capital is", "Rome", subject="Italy", rephrase="The capital of Italy is", **LOCALITY)

NESTED = {
    "case_id": 7,
    "requested_rewrite": {"prompt": "{}'s capital is", "subject": "Italy", "target_new": {"str": "Rome"}, "target_true": {"str": "Madrid"}},
    "paraphrase_prompts": ["The capital of Italy is", "Unused"],
    "neighborhood_prompts": ["Spain's capital is", "Unused"],
}
FLAT = {
    "case_id": 7,
    "prompt": "Italy's capital is",
    "target_new": "Rome",
    "subject": "Italy",
    "ground_truth": "Turin",
    "rephrase_prompt": "The capital of Italy is",
    "locality_prompt": "Spain's capital is",
    "locality_ground_truth": "Madrid",
}
MEND = {
    "src": "Italy's capital is",
    "alt": "Rome",
    "pred": "Turin",
    "subject": "Italy",
    "rephrase": "The capital of Italy is",
    "loc": "nq question: who is it",
    "loc_ans": "me",
    "answers": ["Turin"],
}
OWN_ZSRE = {
    "src": "Italy's capital is",
    "ans": "Rome",
    "subject": "Italy",
    "rephrase": "The capital of Italy is",
    "loc": "who is it",
    "loc_ans": "me",
}
BENCH = {
    "prompt": "Italy's capital is",
    "ans": "Rome",
    "subject": "Italy",
    "rephrase_prompt": "The capital of Italy is",
    "loc": "Spain's capital is",
    "loc_ans": "Madrid",
}
JSONL = {"prompt": "Italy's capital is", "target": "Rome", "subject": "Italy", "rephrase": "The capital of Italy is", **LOCALITY}


def with_values(request: EditRequest, **values: Any) -> EditRequest:
    return EditRequest(**{**{name: getattr(request, name) for name in EditRequest.__slots__}, **values})


CASES: dict[str, tuple[str, dict[str, Any], EditRequest]] = {
    "jsonl": ("jsonl", JSONL, EXPECTED),
    "jsonl with an id": ("jsonl", {**JSONL, "id": 12}, with_values(EXPECTED, id="12")),
    "jsonl, the least": ("jsonl", {"prompt": "a", "target": "b"}, EditRequest("a", "b")),
    "ultraeditbench": ("ultraeditbench", BENCH, EXPECTED),
    "zsre, MEND's": ("zsre", MEND, with_values(EXPECTED, locality_prompt="nq question: who is it", locality_answer="me")),
    "zsre, the method's own": ("zsre", OWN_ZSRE, with_values(EXPECTED, locality_prompt="who is it?", locality_answer="me")),
    "counterfact, flat": ("counterfact", FLAT, with_values(EXPECTED, id="7")),
    "counterfact, nested": ("counterfact", NESTED, with_values(EXPECTED, id="7")),
}


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("as_array", [False, True], ids=["lines", "array"])
def test_each_format_is_recognised_and_converted(case: str, as_array: bool, tmp_path: Path) -> None:
    name, record, expected = CASES[case]
    text = json.dumps([record, record], indent=1) if as_array else f"{json.dumps(record)}\n\n{json.dumps(record)}"
    file = EditFile(write(tmp_path / "edits", text))
    assert file.format.name == name
    assert list(file) == [NumberedRequest(1, expected), NumberedRequest(2, expected)]
    assert list(EditFile(file.path, name)) == list(file)


def test_every_format_has_a_case() -> None:
    assert {name for name, _, _ in CASES.values()} == set(FORMATS)


def test_a_named_format_is_not_guessed(tmp_path: Path) -> None:
    (bad,) = EditFile(write(tmp_path / "edits", json.dumps(JSONL)), "zsre")
    assert isinstance(bad, BadRecord)
    assert bad.reason.startswith("src: missing")
    with pytest.raises(InputError, match=r"format: expected auto, .*, found 'xml'"):
        EditFile(tmp_path / "edits", "xml")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({**MEND, "src": " "}, "src: "),
        ({**BENCH, "ans": ""}, "ans: "),
        ({**BENCH, "loc": 3}, "loc: "),
        ({**FLAT, "target_new": None}, "target_new: "),
        ({**NESTED, "requested_rewrite": "text"}, "requested_rewrite: expected an object"),
        ({**NESTED, "neighborhood_prompts": [["text"]]}, "locality_prompt: "),
    ],
)
def test_a_reason_names_the_field_as_the_file_does(record: dict[str, Any], reason: str, tmp_path: Path) -> None:
    (bad,) = EditFile(write(tmp_path / "edits", json.dumps(record)))
    assert isinstance(bad, BadRecord)
    assert bad.reason.startswith(reason)
    assert bad.raw == record


def test_the_first_usable_record_tells_the_format(tmp_path: Path) -> None:
    file = EditFile(write(tmp_path / "edits", f'not JSON\n[1]\n{{"other": 1}}\n{json.dumps(BENCH)}'))
    assert file.format.name == "ultraeditbench"
    assert [type(record) for record in file] == [BadRecord, BadRecord, BadRecord, NumberedRequest]
    assert [record.number for record in file] == [1, 2, 3, 4]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 2**18])
def test_an_array_is_cut_into_its_elements_wherever_a_chunk_ends(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [{"a": 'x",[]{}\\"'}, {"b": [1, {"c": []}]}, {}, {"é\\": "\\\\"}, {"d": "\u2028日本\U0001f600"}]
    monkeypatch.setattr(records_module, "_CHUNK_BYTES", chunk)
    for ascii_only in (True, False):
        path = write(tmp_path / "edits", "\ufeff \n" + json.dumps(values, ensure_ascii=ascii_only, indent=2) + "\n\n")
        assert [value for _, value in read_parts(find_parts(path))] == values


GOOD = json.dumps({"prompt": "a", "target": "b"}).encode()


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        (b'{"prompt": "\xff", "target": "b"}', "is not valid UTF-8 (its byte 13 is 0xff)"),
        (b'{"prompt": "say "hi" now"}', "is not JSON"),
        (b'{"prompt": "a" "target": "b"}', "is not JSON"),
        (b'{"prompt": "a"]', "is not JSON"),
        (b"", "is not JSON (Expecting value, character 1)"),
        (b"1" * 10_000, "cannot be read as JSON"),
        (b"[" * 50_000 + b"]" * 50_000, "cannot be read as JSON"),
        (b'"text"', "expected a JSON object, found str"),
        (b'{"prompt": "\\ud800", "target": "b"}', "prompt: contains a lone surrogate"),
    ],
    ids=lambda value: repr(value[:25]),
)
@pytest.mark.parametrize("kind", ["array", "lines"])
def test_what_is_wrong_with_one_record_costs_no_other(element: bytes, reason: str, kind: str, tmp_path: Path) -> None:
    if kind == "lines" and not element:
        pytest.skip("an empty line is no record")
    content = b"[" + b",".join([GOOD, element, GOOD]) + b"]" if kind == "array" else b"\n".join([GOOD, element, GOOD])
    first, bad, last = EditFile(write(tmp_path / "edits", content))
    assert (first.number, bad.number, last.number) == (1, 2, 3)
    assert isinstance(first, NumberedRequest)
    assert isinstance(last, NumberedRequest)
    assert isinstance(bad, BadRecord)
    assert bad.reason.startswith(reason)


@pytest.mark.parametrize("content", [b'[{"prompt": "a', b'[{"a": 1}', b"[", b'[{"a": 1},', b'[{"a": [1}', b'["\\'])
def test_an_array_that_is_never_closed_is_an_error_of_the_file(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"record \d: the JSON array breaks off"):
        list(EditFile(write(tmp_path / "edits", content), "jsonl"))


@pytest.mark.parametrize("content", [b"[1] x", b"[1][2]", b"[1}", b"[]" + b" " * 2**19 + b"x"])
def test_an_array_that_goes_on_after_its_end_is_an_error_of_the_file(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the end of the file"):
        list(EditFile(write(tmp_path / "edits", content), "jsonl"))


def test_a_lost_quote_does_not_read_a_huge_array_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "_MAX_RECORD_BYTES", 2**20)
    path = write(tmp_path / "edits", b"[" + GOOD + b", [" + GOOD + b"," + b" " * 2**22 + b"]")
    with pytest.raises(InputError, match="record 2: is over 1 MiB long; expected a quote or bracket that closes it"):
        list(EditFile(path))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
NAMES = sorted({*JSONL, *BENCH, *MEND, *OWN_ZSRE, *FLAT, *NESTED, "id", "str"})
NEARLY = st.dictionaries(
    st.sampled_from(NAMES), JUNK | st.dictionaries(st.sampled_from(["str", "prompt", "subject", "target_new"]), JUNK), max_size=8
)
GOOD_ONES = st.sampled_from([record for _, record, _ in CASES.values()])


def read_all(content: bytes, format: str) -> list[NumberedRequest | BadRecord] | None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(content)
        try:
            return list(EditFile(file.name, format))
        except InputError as error:
            message = str(error)
    assert message.startswith(f"{file.name}: ")
    assert len(message.splitlines()) == 1
    return None


@settings(deadline=None, max_examples=150)
@given(st.lists(GOOD_ONES | NEARLY | JUNK, max_size=6), st.booleans(), st.sampled_from(["auto", *FORMATS]))
def test_every_record_of_any_json_comes_out_numbered_or_the_file_is_refused(values: list[Any], as_array: bool, format: str) -> None:
    text = json.dumps(values) if as_array else "\n".join(json.dumps(value) for value in values)
    found = read_all(text.encode(), format)
    if found is not None:
        as_array = as_array or text.startswith("[")
        assert [record.number for record in found] == list(range(1, (len(json.loads(text)) if as_array else len(values)) + 1))
        assert all(isinstance(record, NumberedRequest | BadRecord) for record in found)


@settings(deadline=None, max_examples=150)
@given(
    st.binary(max_size=60) | st.text('[]{},:"\\ \n1a', max_size=40).map(str.encode),
    st.sampled_from(["", "[", '{"prompt":"']),
    st.sampled_from(["auto", *FORMATS]),
)
def test_any_bytes_are_records_or_a_refused_file(content: bytes, start: str, format: str) -> None:
    found = read_all(start.encode() + content, format)
    if found is not None:
        assert [record.number for record in found] == list(range(1, len(found) + 1))


@settings(deadline=None, max_examples=150)
@given(st.lists(JUNK | NEARLY, max_size=5), st.sampled_from([None, 1]), st.integers(1, 9))
def test_an_array_is_read_as_python_reads_it(values: list[Any], indent: int | None, chunk: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(records_module, "_CHUNK_BYTES", chunk)
        path = write(Path(folder) / "edits", json.dumps(values, indent=indent))
        found = [value if isinstance(value, dict) else value.raw for _, value in read_parts(find_parts(path))]
    assert json.dumps(found) == json.dumps(values)  # as text, where NaN equals NaN


@pytest.mark.skipif(not DATA.is_dir(), reason="the data sets lie beside the repository, not in it")
@pytest.mark.parametrize(
    ("name", "format", "count", "convert"),
    [
        ("counterfact-edit.json", "counterfact", 10_000, lambda r: (r["prompt"], r["target_new"], r["rephrase_prompt"], r["locality_prompt"])),
        ("zsre_mend_edit.json", "zsre", 1_037, lambda r: (r["src"], r["alt"], r["rephrase"], r["loc"])),
    ],
)
def test_the_public_data_sets_are_read_whole(name: str, format: str, count: int, convert: Callable[[dict[str, Any]], tuple[str, ...]]) -> None:
    file = EditFile(DATA / name)
    read = list(file)
    assert file.format.name == format
    assert [record.number for record in read] == list(range(1, count + 1))
    requests = [record.request for record in read if isinstance(record, NumberedRequest)]
    expected = [convert(record) for record in json.loads((DATA / name).read_text())]
    assert [(r.prompt, r.target, r.rephrase, r.locality_prompt) for r in requests] == expected
