"""Formats: what each data set asks, whatever its records hold; and the common schema, which keeps all of it."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editing import EditRequest, InputError
from editing.datasets import FORMATS, BadRecord, EditFile, NumberedRequest
from editing.datasets import writing as writing_module
from editing.datasets.writing import SCHEMA, RequestWriter
from editing.requests import TEXT_LISTS
from orchestrator.run.run_config import FormatName
from tests.support.edit_files import BENCH, CASES, FEVER, FLAT, JSONL, JUNK, KNOWEDIT, MQUAKE, QAEDIT, WIKIBIGEDIT, json_lines, write_file
from tests.support.more_formats import CKNOWEDIT
from tests.support.paths import PUBLIC_DATA

REWRITES = [{**MQUAKE["requested_rewrite"][0], "target_new": {"str": name}} for name in ("Rome", "Milan", "Turin")]


def read(tmp_path: Path, *records: dict[str, Any], format: str = "auto", seed: int = 0) -> list[NumberedRequest | BadRecord]:
    return list(EditFile(write_file(tmp_path / "edits", json_lines(records)), format, seed=seed))


def requests(found: list[NumberedRequest | BadRecord]) -> list[EditRequest]:
    assert not [record for record in found if isinstance(record, BadRecord)]
    return [record.request for record in found if isinstance(record, NumberedRequest)]


def test_the_configuration_knows_every_format() -> None:
    assert set(get_args(FormatName)) == {"auto", *FORMATS}


# --- a record that asks for several edits


def test_each_edit_of_an_mquake_record_has_a_number_and_the_last_has_the_questions(tmp_path: Path) -> None:
    found = read(tmp_path, {**MQUAKE, "requested_rewrite": REWRITES}, {**MQUAKE, "case_id": 8})
    assert [record.number for record in found] == [1, 2, 3, 4]
    asked = requests(found)
    assert [(r.id, r.target, len(r.multi_hop_prompt)) for r in asked] == [
        ("7-1", "Rome", 0),
        ("7-2", "Milan", 0),
        ("7-3", "Turin", 2),
        ("8", "Rome", 2),
    ]


def test_reading_on_after_any_edit_of_an_mquake_record_gives_the_rest(tmp_path: Path) -> None:
    bad = {**MQUAKE, "requested_rewrite": [REWRITES[0], {"prompt": 3}, REWRITES[1]]}
    path = write_file(tmp_path / "edits", b"not JSON\n" + json_lines([bad, {**MQUAKE, "requested_rewrite": None}, MQUAKE]))
    file = EditFile(path)
    found = list(file)
    assert [record.number for record in found] == [1, 2, 3, 4, 5, 6]
    assert [record.reason.split(":")[0] for record in found if isinstance(record, BadRecord)] == [
        "is not JSON (Expecting value, character 1)",
        "prompt",
        "requested_rewrite",
    ]
    for after in range(8):
        assert list(file.records(after=after)) == found[after:]


def test_the_number_of_edits_of_mquake_in_parquet_is_not_that_of_its_rows(tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist([{**MQUAKE, "requested_rewrite": REWRITES}]), tmp_path / "edits")
    file = EditFile(tmp_path / "edits")
    assert (file.num_records, len(requests(list(file)))) == (None, 3)


def test_a_reason_of_mquake_names_its_field(tmp_path: Path) -> None:
    (bad,) = read(tmp_path, {**MQUAKE, "new_answer": None})
    assert isinstance(bad, BadRecord)
    assert bad.reason == "new_answer: missing; expected a non-empty string"


# --- choices


def test_fevers_rephrase_is_told_by_the_seed_and_the_record(tmp_path: Path) -> None:
    records = [{**FEVER, "prompt": f"claim {i}", "equiv_prompt": [f"a{i}", f"b{i}", f"c{i}"]} for i in range(60)]
    chosen = [r.rephrase for r in requests(read(tmp_path, *records))]
    assert {rephrase[0] for rephrase in chosen if rephrase} == {"a", "b", "c"}
    assert chosen == [r.rephrase for r in requests(read(tmp_path, *records))]
    assert chosen != [r.rephrase for r in requests(read(tmp_path, *records, seed=1))]
    after = list(EditFile(tmp_path / "edits").records(after=50))
    assert chosen[50:] == [r.rephrase for r in requests(after)]
    assert [r.rephrase for r in requests(read(tmp_path, *records[::-1]))] == chosen[::-1]


@pytest.mark.parametrize("equivalent", [None, []])
def test_a_claim_of_fever_without_equivalents_has_no_rephrase(equivalent: Any, tmp_path: Path) -> None:
    assert requests(read(tmp_path, {**FEVER, "equiv_prompt": equivalent}))[0].rephrase is None


def test_nan_as_pandas_writes_it_is_a_null(tmp_path: Path) -> None:
    (request,) = requests(read(tmp_path, {**WIKIBIGEDIT, "mhop": float("nan"), "mhop_ans": float("nan"), "personas": float("nan")}))
    assert (request.persona, request.multi_hop_prompt, request.multi_hop_answer) == ((), (), ())
    assert request.rephrase == WIKIBIGEDIT["rephrase"]


def test_whole_numbers_of_a_column_with_nulls_are_ids_without_a_point(tmp_path: Path) -> None:
    assert requests(read(tmp_path, {**FLAT, "case_id": 7.0}))[0].id == "7"


# --- several formats in one input


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (JSONL, QAEDIT, "format: expected a record of format jsonl as the first usable one, found the fields of qaedit (locality, prompt, target)"),
        (FLAT, KNOWEDIT, "format: expected a record of format counterfact as the first usable one, found the fields of knowedit"),
        (JSONL, {**BENCH, "target": "Rome"}, "format: expected a record of format jsonl as the first usable one, found the fields of ultraeditbench"),
        (BENCH, JSONL, "ans: missing"),
        (WIKIBIGEDIT, FEVER, "update: missing"),
        (
            KNOWEDIT,
            {**MQUAKE, "target_new": "Rome"},
            "format: expected a record of format knowedit as the first usable one, found the fields of mquake",
        ),
    ],
)
def test_what_a_record_of_another_format_asks_is_not_dropped_in_silence(
    first: dict[str, Any], second: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    write_file(tmp_path / "a.json", json_lines([first]))
    write_file(tmp_path / "b.json", json_lines([second, first]))
    good, bad, last = EditFile(tmp_path)
    assert isinstance(good, NumberedRequest)
    assert isinstance(bad, BadRecord)
    assert isinstance(last, NumberedRequest)
    assert bad.reason.startswith(reason)


def test_records_of_a_special_format_may_lack_what_makes_it_special(tmp_path: Path) -> None:
    plain = {name: KNOWEDIT[name] for name in ("subject", "prompt", "target_new")}
    assert requests(read(tmp_path, KNOWEDIT, plain))[1] == EditRequest("Italy's capital is", "Rome", subject="Italy")
    named = read(tmp_path, plain, KNOWEDIT, format="knowedit")
    assert len(requests(named)[1].portability_prompt) == 2


def test_no_known_format_says_what_was_seen_and_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, {"question": "a", "answer": "b"})
    message = str(error.value)
    assert "its first record has the fields 'answer', 'question'" in message
    assert all(name in message for name in FORMATS)
    assert "wikibigedit (ans, update)" in message
    assert len(message.splitlines()) == 1


# --- the common schema


def round_trip(asked: list[EditRequest], name: str) -> list[EditRequest]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        with RequestWriter(path) as writer:
            for request in asked:
                writer.write(request)
        assert writer.count == len(asked)
        if name.endswith("parquet"):
            assert pq.read_schema(path) == SCHEMA
        return requests(list(EditFile(path)))


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="{[<"), min_size=1, max_size=12).filter(str.strip)
REQUESTS = st.builds(
    lambda hops, locality, **values: EditRequest(
        **values,
        multi_hop_prompt=tuple(q for q, _ in hops),
        multi_hop_answer=tuple(a for _, a in hops),
        locality_prompt=locality[0],
        locality_answer=locality[1] if locality[0] else None,
    ),
    prompt=TEXT,
    target=TEXT,
    id=st.none() | TEXT,
    subject=st.none() | TEXT,
    rephrase=st.none() | TEXT,
    persona=st.lists(TEXT, max_size=3).map(tuple),
    hops=st.lists(st.tuples(TEXT, TEXT), max_size=3),
    locality=st.tuples(st.none() | TEXT, st.none() | TEXT),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(REQUESTS, min_size=1, max_size=4), st.sampled_from(["edits.parquet", "edits.jsonl"]))
def test_requests_come_back_from_the_common_schema_as_they_were(asked: list[EditRequest], name: str) -> None:
    assert round_trip(asked, name) == asked


def test_batches_of_a_written_file_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [EditRequest(f"prompt {i}", "x" * (i % 40)) for i in range(1, 200) if i % 40]
    monkeypatch.setattr(writing_module, "_BATCH_ROWS", 7)
    monkeypatch.setattr(writing_module, "_BATCH_CHARACTERS", 100)
    assert round_trip(asked, "edits.parquet") == asked


# --- any value in any field


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything in a record but the record itself."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


def put(record: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed: Any = json.loads(json.dumps(record))
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


BROKEN = st.sampled_from(list(CASES.values())).flatmap(
    lambda case: st.tuples(st.just(case[0]), st.just(case[1]), st.sampled_from(list(places(case[1]))), JUNK)
)
HARD = [None, "", " ", "\ud800", 0, -1.5, float("nan"), float("inf"), True, [], {}, [[]], [{}], [None], {"str": None}, [[["a"]]], "x" * 1_000_001]


def check(format: str, record: dict[str, Any], folder: Path) -> list[EditRequest]:
    """A record gives numbered requests, or reasons that name a field; these requests."""
    found = list(EditFile(write_file(folder / "edits", json.dumps(record)), format))
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    assert found
    good = [one.request for one in found if isinstance(one, NumberedRequest)]
    for one in found:
        if isinstance(one, BadRecord):
            field, colon, rest = one.reason.partition(": ")
            assert colon
            assert rest
            assert len(one.reason.splitlines()) == 1
            assert field.partition(".")[0] in {*record, *EditRequest.__slots__, *(key for path in places(record) for key in path)}
    return good


@settings(deadline=None, max_examples=300)
@given(BROKEN)
def test_any_value_in_any_field_costs_at_most_its_own_record(broken: tuple[str, dict[str, Any], tuple[Any, ...], Any]) -> None:
    format, record, path, value = broken
    with tempfile.TemporaryDirectory() as folder:
        good = check(format, put(record, path, value), Path(folder))
    if good:
        assert round_trip(good, "edits.parquet") == good


@pytest.mark.parametrize("name", ["two\nlines", "\x1e", "\u2028", "\ud800"])
def test_names_of_fields_are_shown_on_one_line(name: str, tmp_path: Path) -> None:
    (bad,) = read(tmp_path, {**CKNOWEDIT, "locality": {name: [None]}})
    assert isinstance(bad, BadRecord)
    assert bad.reason.startswith(f"locality.{ascii(name)[1:-1]}: expected ")
    (good,) = read(tmp_path, {**CKNOWEDIT, name: 1})
    assert isinstance(good, NumberedRequest)
    assert good.notes.unread == ((ascii(name)[1:-1], None),)


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.thorough) if case == "rippleedits" else case for case in CASES])
def test_hard_values_in_every_field_cost_at_most_their_own_record(case: str, tmp_path: Path) -> None:
    format, record, _ = CASES[case]
    for path in places(record):
        good = [request for value in HARD for request in check(format, put(record, path, value), tmp_path)]
        assert not good or round_trip(good, "edits.parquet") == good


def test_texts_of_any_length_are_read_and_refused_by_their_field(tmp_path: Path) -> None:
    long = "word " * 2_000_000
    (bad,) = read(tmp_path, {**WIKIBIGEDIT, "personas": long})
    assert isinstance(bad, BadRecord)
    assert bad.reason == "personas: is 10,000,000 characters long; expected at most 1,000,000"


@pytest.mark.skipif(not PUBLIC_DATA.is_dir(), reason="the data sets lie beside the repository, not in it")
@pytest.mark.parametrize(("name", "portability"), [("counterfact-edit.json", 0), ("zsre_mend_edit.json", 1_037)])
def test_the_public_data_sets_round_trip(name: str, portability: int) -> None:
    asked = requests(list(EditFile(PUBLIC_DATA / name)))
    assert sum(len(request.portability_prompt) for request in asked) == portability
    assert not any(request.multi_hop_prompt for request in asked)
    assert round_trip(asked, "edits.parquet") == asked


def test_lists_of_texts_are_tuples_however_they_are_given() -> None:
    one = EditRequest("a", "b", persona="c", multi_hop_prompt=["d"], multi_hop_answer=["e"])  # type: ignore[arg-type]
    assert (one.persona, one.multi_hop_prompt, one.multi_hop_answer) == (("c",), ("d",), ("e",))
    assert all(getattr(EditRequest("a", "b", **dict.fromkeys(TEXT_LISTS)), name) == () for name in TEXT_LISTS)
