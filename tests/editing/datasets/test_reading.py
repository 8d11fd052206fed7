"""Readers: every format comes out right, and nothing that a file can hold stops more than its own record."""

import gzip
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from editing import EditRequest, InputError
from editing.datasets import FORMATS, BadRecord, EditFile, NumberedRequest
from editing.datasets import parquet as parquet_module
from editing.datasets import records as records_module
from editing.datasets.parts import find_parts, read_parts
from tests.support.edit_files import (
    BENCH,
    CASES,
    EXPECTED,
    FEVER,
    FLAT,
    JSONL,
    JUNK,
    KNOWEDIT,
    MEND,
    MQUAKE,
    NESTED,
    QAEDIT,
    WIKIBIGEDIT,
    json_lines,
    write_file,
)
from tests.support.paths import PUBLIC_DATA, ROOT


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("as_array", [False, True], ids=["lines", "array"])
def test_each_format_is_recognised_and_converted(case: str, as_array: bool, tmp_path: Path) -> None:
    name, record, expected = CASES[case]
    text = json.dumps([record, record], indent=1) if as_array else f"{json.dumps(record)}\n\n{json.dumps(record)}"
    file = EditFile(write_file(tmp_path / "edits", text))
    assert file.format.name == name
    assert list(file) == [NumberedRequest(1, expected), NumberedRequest(2, expected)]
    assert list(EditFile(file.path, name)) == list(file)


def test_every_format_has_a_case() -> None:
    assert {name for name, _, _ in CASES.values()} == {*FORMATS} - {"bizsre-zh"}  # told by name only: its records are bizsre's


def test_a_named_format_is_not_guessed(tmp_path: Path) -> None:
    (bad,) = EditFile(write_file(tmp_path / "edits", json.dumps(JSONL)), "zsre")
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
        ({**NESTED, "neighborhood_prompts": [["text"]]}, "neighborhood_prompts: "),
        ({**NESTED, "case_id": {}}, "case_id: expected a non-empty string, found dict"),
        ({**FEVER, "equiv_prompt": [7]}, "equiv_prompt: expected a non-empty string, found int"),
        ({**WIKIBIGEDIT, "personas": ["a", ""]}, "personas: expected a non-empty string"),
        ({**WIKIBIGEDIT, "mhop_ans": None}, "mhop_ans: expected one answer for each question, found 0 for 1"),
        ({**WIKIBIGEDIT, "mhop": ["a", "b"]}, "mhop_ans: expected one answer for each"),
        ({**MQUAKE, "requested_rewrite": []}, "requested_rewrite: expected an object, found list"),
        ({**KNOWEDIT, "locality": [1]}, "locality: expected an object with lists of questions, found list"),
        ({**KNOWEDIT, "portability": {"Reasoning": ["a"]}}, "portability.Reasoning: expected objects with prompt"),
        ({**KNOWEDIT, "portability": {"Reasoning": [{"prompt": 1, "ground_truth": "a"}]}}, "portability: expected a non-empty string, found int"),
        ({**KNOWEDIT, "portability": {"Reasoning": [{"prompt": "a", "ground_truth": [[["b"]]]}]}}, "portability.Reasoning.ground_truth: expected"),
        ({**QAEDIT, "locality": ["a"]}, "locality: expected objects with loc and loc_ans"),
        ({**QAEDIT, "locality": [{"loc": "a", "loc_ans": 3}]}, "loc_ans: expected a non-empty string"),
        ({**JSONL, "multi_hop_prompt": "a"}, "multi_hop_answer: expected one answer for each question, found 0 for 1"),
        ({**JSONL, "prompt": "x" * 1_000_001}, "prompt: is 1,000,001 characters long; expected at most 1,000,000"),
    ],
)
def test_a_reason_names_the_field_as_the_file_does(record: dict[str, Any], reason: str, tmp_path: Path) -> None:
    (bad,) = EditFile(write_file(tmp_path / "edits", json.dumps(record)))
    assert isinstance(bad, BadRecord)
    assert bad.reason.startswith(reason)
    assert bad.raw == record


def test_the_first_usable_record_tells_the_format(tmp_path: Path) -> None:
    file = EditFile(write_file(tmp_path / "edits", f'not JSON\n[1]\n{{"other": 1}}\n{json.dumps(BENCH)}'))
    assert file.format.name == "ultraeditbench"
    assert [type(record) for record in file] == [BadRecord, BadRecord, BadRecord, NumberedRequest]
    assert [record.number for record in file] == [1, 2, 3, 4]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 2**18])
def test_an_array_is_cut_into_its_elements_wherever_a_chunk_ends(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [{"a": 'x",[]{}\\"'}, {"b": [1, {"c": []}]}, {}, {"é\\": "\\\\"}, {"d": "\u2028日本\U0001f600"}]
    monkeypatch.setattr(records_module, "_CHUNK_BYTES", chunk)
    for ascii_only in (True, False):
        path = write_file(tmp_path / "edits", "\ufeff \n" + json.dumps(values, ensure_ascii=ascii_only, indent=2) + "\n\n")
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
    first, bad, last = EditFile(write_file(tmp_path / "edits", content))
    assert (first.number, bad.number, last.number) == (1, 2, 3)
    assert isinstance(first, NumberedRequest)
    assert isinstance(last, NumberedRequest)
    assert isinstance(bad, BadRecord)
    assert bad.reason.startswith(reason)


@pytest.mark.parametrize("content", [b'[{"prompt": "a', b'[{"a": 1}', b"[", b'[{"a": 1},', b'[{"a": [1}', b'["\\'])
def test_an_array_that_is_never_closed_is_an_error_of_the_file(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"record \d: the JSON array breaks off"):
        list(EditFile(write_file(tmp_path / "edits", content), "jsonl"))


@pytest.mark.parametrize("content", [b"[1] x", b"[1][2]", b"[1}", b"[]" + b" " * 2**19 + b"x"])
def test_an_array_that_goes_on_after_its_end_is_an_error_of_the_file(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the end of the file"):
        list(EditFile(write_file(tmp_path / "edits", content), "jsonl"))


def test_a_lost_quote_does_not_read_a_huge_array_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "_MAX_RECORD_BYTES", 2**20)
    path = write_file(tmp_path / "edits", b"[" + GOOD + b", [" + GOOD + b"," + b" " * 2**22 + b"]")
    with pytest.raises(InputError, match="record 2: is over 1 MiB long; expected a quote or bracket that closes it"):
        list(EditFile(path))


def test_a_line_that_never_ends_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "_MAX_RECORD_BYTES", 2**20)
    path = write_file(tmp_path / "edits", gzip.compress(GOOD + b"\n" + b"x" * 2**22))
    with pytest.raises(InputError, match="record 2: is over 1 MiB long; expected a line end"):
        list(EditFile(path))


# --- containers: the same records, however they are wrapped


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


def write_parquet(path: Path, records: Sequence[Any], **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(list(records)), path, **options)
    return path


def write_parts(path: Path, records: Sequence[Any], write_part: Callable[[Path, Sequence[Any]], Any]) -> Path:
    """Parts of three records, and what programs leave beside them."""
    path.mkdir()
    for a in reversed(range(0, len(records), 3)):
        write_part(path / f"part-{a:05d}", records[a : a + 3])
    for name in ("_SUCCESS", ".part-00000.crc"):
        (path / name).write_bytes(b"x")
    return path


CONTAINERS: dict[str, Callable[[Path, Sequence[Any]], Path]] = {
    "lines": lambda path, records: write_file(path, json_lines(records)),
    "array": lambda path, records: write_file(path, json.dumps(records)),
    "gzip lines": lambda path, records: write_file(path, gzip.compress(json_lines(records))),
    "gzip array": lambda path, records: write_file(path, gzip.compress(json.dumps(records, indent=1).encode())),
    "gzip members": lambda path, records: write_file(path, gzip.compress(json_lines(records[:1])) + gzip.compress(json_lines(records[1:]))),
    "zstd lines": lambda path, records: write_file(path, zstd(json_lines(records))),
    "zstd array": lambda path, records: write_file(path, zstd(json.dumps(records).encode())),
    "Parquet": lambda path, records: write_parquet(path, records, row_group_size=4),
    "Parquet parts": lambda path, records: write_parts(path, records, lambda p, r: write_parquet(p, r, row_group_size=2)),
    "JSON parts": lambda path, records: write_parts(path, records, lambda p, r: write_file(p, json.dumps(r))),
    "gzip parts": lambda path, records: write_parts(path, records, lambda p, r: write_file(p, gzip.compress(json_lines(r)))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_each_format_comes_out_of_each_container_with_the_same_numbers(case: str, container: str, tmp_path: Path) -> None:
    name, record, expected = CASES[case]
    file = EditFile(CONTAINERS[container](tmp_path / "edits", [record] * 7))
    assert file.format.name == name
    assert list(file) == [NumberedRequest(number, expected) for number in range(1, 8)]
    assert list(file) == list(EditFile(file.path, name))


@pytest.mark.parametrize("container", CONTAINERS)
def test_reading_on_after_any_record_gives_the_rest(container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "_BATCH_ROWS", 3)
    records = [{"prompt": f"p{i}", "target": f"t{i}" if i % 5 else None, "id": str(i)} for i in range(1, 14)]
    file = EditFile(CONTAINERS[container](tmp_path / "edits", records))
    read = list(file)
    assert [record.number for record in read] == list(range(1, 14))
    assert [r.request.id if isinstance(r, NumberedRequest) else r.reason.split(":")[0] for r in read] == [
        str(i) if i % 5 else "target" for i in range(1, 14)
    ]
    for after in range(16):
        assert list(file.records(after=after)) == read[after:]


@pytest.mark.parametrize("as_array", [False, True], ids=["lines", "array"])
def test_skipped_text_is_not_parsed(as_array: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    parse = records_module._parse
    monkeypatch.setattr(records_module, "_parse", lambda number, text: parsed.append(number) or parse(number, text))
    file = EditFile(CONTAINERS["array" if as_array else "gzip lines"](tmp_path / "edits", [JSONL] * 9), "jsonl")
    assert [record.number for record in file.records(after=6)] == parsed == [7, 8, 9]


def test_skipped_row_groups_are_not_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "edits", [{"prompt": f"p{i}", "target": "t"} for i in range(30)], row_group_size=10, compression="none")
    content = bytearray(path.read_bytes())
    end = pq.read_metadata(path).row_group(2).column(0).dictionary_page_offset
    content[4:end] = b"\xff" * (end - 4)
    path.write_bytes(content)
    file = EditFile(path, "jsonl")
    assert [record.number for record in file.records(after=25)] == [26, 27, 28, 29, 30]
    with pytest.raises(InputError, match="Parquet file is damaged or cut off after record 10 "):
        list(file.records(after=10))


def test_what_is_known_without_reading(tmp_path: Path) -> None:
    known = {}
    for name, write_as in CONTAINERS.items():
        file = EditFile(write_as(tmp_path / name, [JSONL] * 7))
        known[name] = (file.num_records, file.text_bytes)
    text = len(json_lines([JSONL] * 7))
    array = len(json.dumps([JSONL] * 7))
    assert known == {
        **dict.fromkeys(CONTAINERS, (None, None)),
        "lines": (None, text),
        "array": (None, array),
        "JSON parts": (None, 2 * len(json.dumps([JSONL] * 3)) + len(json.dumps([JSONL]))),
        "Parquet": (7, None),
        "Parquet parts": (7, None),
    }


def test_a_container_is_told_by_its_bytes_not_by_its_name(tmp_path: Path) -> None:
    for name, content in (("a.parquet", json_lines([JSONL])), ("b.json", gzip.compress(json_lines([JSONL]))), ("c.gz", zstd(json_lines([JSONL])))):
        assert list(EditFile(write_file(tmp_path / name, content))) == [NumberedRequest(1, EXPECTED)]
    assert list(EditFile(write_parquet(tmp_path / "d.jsonl", [JSONL]))) == [NumberedRequest(1, EXPECTED)]


@pytest.mark.parametrize("compress", [gzip.compress, zstd, bytes])
def test_leading_blanks_and_a_byte_order_mark_are_passed_over(
    compress: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "_STREAM_BYTES", 8)
    for mark in (b"", b"\xef\xbb\xbf"):
        for text in (json_lines([JSONL]), json.dumps([JSONL]).encode()):
            assert list(EditFile(write_file(tmp_path / "edits", compress(mark + b" \n" * 20_000 + text)))) == [NumberedRequest(1, EXPECTED)]


DICE = random.Random(3)
MANY = [{"prompt": f"What is {DICE.random()}?", "target": str(i)} for i in range(10_000)]


def cut(content: bytes) -> bytes:
    return content[: len(content) * 3 // 4]


def cut_end(content: bytes) -> bytes:
    return content[:-5]


def scramble(content: bytes) -> bytes:
    at = len(content) * 4 // 5
    return content[:at] + b"\xff" * 200 + content[at + 200 :]


def blank_footer(content: bytes) -> bytes:
    length = int.from_bytes(content[-8:-4], "little")
    return content[: -8 - length] + b"\0" * length + content[-8:]


@pytest.mark.parametrize("damage", [cut, cut_end, scramble])
@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_damaged_stream_is_one_line_that_names_the_file_and_the_record_reached(kind: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    content = {"gzip": gzip.compress, "zstd": zstd}[kind](json_lines(MANY))
    path = write_file(tmp_path / "edits", damage(content))
    read: list[NumberedRequest | BadRecord] = []
    with pytest.raises(InputError, match=rf"^{path}: the {kind} stream is damaged or cut off after record \d+ \(.*\); write or copy") as error:
        read.extend(EditFile(path))
    assert "\n" not in str(error.value)
    assert len(read) > 500
    assert f"after record {len(read)} (" in str(error.value)
    intact = 1000 if damage is scramble else len(read)  # bytes that are wrong may decode to something before a checksum tells
    assert [r.request.target for r in read[:intact] if isinstance(r, NumberedRequest)] == [record["target"] for record in MANY[:intact]]


@pytest.mark.parametrize(
    "content",
    [b"\x1f\x8b", b"\x1f\x8bxxxxxxxxxxxxxxx", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfdxxxxx", gzip.compress(b"", mtime=0), b"PAR1", b"PAR1PAR1"],
)
def test_what_only_begins_like_a_container_is_refused(content: bytes, tmp_path: Path) -> None:
    path = write_file(tmp_path / "edits", content)
    with pytest.raises(InputError, match=rf"^{path}: (the (gzip|zstd) stream|the Parquet file|is empty)") as error:
        EditFile(path).format  # noqa: B018
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [cut, cut_end, scramble, blank_footer])
def test_a_damaged_parquet_file_is_one_line_that_names_it(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "edits", MANY, row_group_size=1250, write_page_checksum=True)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=rf"^{path}: the Parquet file is damaged or cut off (after record \d+ )?\(") as error:
        list(EditFile(path))
    assert "\n" not in str(error.value)


@settings(deadline=None, max_examples=100)
@given(st.data(), st.sampled_from(["Parquet", "gzip lines", "zstd array"]))
def test_any_damage_is_a_refused_file_or_records(data: st.DataObject, container: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = bytearray(CONTAINERS[container](Path(folder) / "edits", [JSONL, NESTED] * 5).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    read_all(bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]), "jsonl")


def test_records_are_numbered_over_the_parts_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, targets in (("b", "34"), ("a", "12"), ("c", "5")):
        write_file(tmp_path / name, zstd(json_lines([{"prompt": "p", "target": t} for t in targets])))
    (tmp_path / "b").write_bytes(gzip.compress(json_lines([{"prompt": "p"}, {"prompt": "p", "target": "4"}])))
    read = list(EditFile(tmp_path))
    assert [r.request.target if isinstance(r, NumberedRequest) else (r.number, r.reason[:6]) for r in read] == ["1", "2", (3, "target"), "4", "5"]


def test_an_error_in_a_later_part_names_it_and_counts_on(tmp_path: Path) -> None:
    write_file(tmp_path / "a", json.dumps([JSONL, JSONL]))
    write_file(tmp_path / "b", json.dumps([JSONL, JSONL])[:-5])
    with pytest.raises(InputError, match=rf"^{tmp_path / 'b'}: record 4: the JSON array breaks off"):
        list(EditFile(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.md", b"# Edits", r"notes.md: expected a part that is JSON lines, a JSON array, CSV, Parquet or Arrow; move it"),
        ("z.json", b"{}", r"z.json: expected parts of one kind in a folder, but edits.parquet is Parquet and z.json is not Parquet; move it"),
        ("z.parquet", b"PAR1", r"z.parquet: the Parquet file is damaged or cut off \("),
    ],
)
def test_what_does_not_belong_in_a_folder_is_refused_before_anything_is_read(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    folder = tmp_path / "edits"
    folder.mkdir()
    write_file(folder / "edits.json", json_lines([JSONL])) if name == "notes.md" else write_parquet(folder / "edits.parquet", [JSONL])
    write_file(folder / name, content)
    with pytest.raises(InputError, match=words):
        EditFile(folder).num_records  # noqa: B018


def test_a_value_of_another_type_in_parquet_is_a_bad_record_with_its_field(tmp_path: Path) -> None:
    table = pa.table({"prompt": [b"p", b"q"], "target": ["a", "b"], "rephrase": [None, 0.5]})
    pq.write_table(table, tmp_path / "edits")
    assert [record.reason for record in EditFile(tmp_path / "edits") if isinstance(record, BadRecord)] == [
        "prompt: expected a non-empty string, found bytes",
        "prompt: expected a non-empty string, found bytes",
    ]
    pq.write_table(table.set_column(0, "prompt", pa.array(["p", "q"])), tmp_path / "edits")
    good, bad = EditFile(tmp_path / "edits")
    assert good == NumberedRequest(1, EditRequest("p", "a"))
    assert bad == BadRecord(2, "rephrase: expected a non-empty string, found float", {"prompt": "q", "target": "b", "rephrase": 0.5})


def test_a_null_in_parquet_is_a_missing_field(tmp_path: Path) -> None:
    """Rows of two formats in one table: every row has every column."""
    names = sorted({*MEND, *JSONL, *BENCH})
    file = EditFile(write_parquet(tmp_path / "edits", [{name: record.get(name) for name in names} for record in ({"prompt": "p"}, MEND)]))
    assert file.format.name == "zsre"
    missing, good = file
    assert isinstance(missing, BadRecord)
    assert isinstance(good, NumberedRequest)
    assert good.request.target == "Rome"


def test_a_value_that_cannot_be_read_costs_its_own_record_only(tmp_path: Path) -> None:
    offsets, letters = pa.array([b"a", b"\xff", b"c"]).buffers()[1:]
    prompts = pa.StringArray.from_buffers(3, offsets, letters)
    pq.write_table(pa.table({"prompt": prompts, "target": ["1", "2", "3"]}), tmp_path / "edits", store_schema=False)
    first, bad, last = EditFile(tmp_path / "edits")
    assert (first, last) == (NumberedRequest(1, EditRequest("a", "1")), NumberedRequest(3, EditRequest("c", "3")))
    assert isinstance(bad, BadRecord)
    assert (bad.number, bad.reason[:35]) == (2, "holds a value that cannot be read (")


# --- constant memory


MEASURE = """
import sys
from pathlib import Path
from editing.datasets import EditFile
def kilobytes(name):  # getrusage would give the peak of the process that started this one, if that was higher
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])
before = kilobytes("VmRSS")
count = sum(1 for _ in EditFile(sys.argv[1]))
print(count, (kilobytes("VmHWM") - before) // 1000)
"""


def write_many(path: Path, container: str, count: int) -> Path:
    """A hundred thousand different records, again and again."""
    block = [{**JSONL, "prompt": f"The capital of country {i} is", "target": f"city {i * 7919 % 100_003}"} for i in range(100_000)]
    if container == "zstd":
        with pa.output_stream(str(path), compression="zstd") as file:
            for _ in range(count // len(block)):
                file.write(json_lines(block))
        return path
    table = pa.Table.from_pylist(block)
    if container == "one row group":
        options = {"compression": "none", "use_dictionary": False}  # hundreds of MB, were it read at once
        pq.write_table(pa.concat_tables([table] * (count // len(block))), path, row_group_size=count, **options)
        return path
    path.mkdir()
    pq.write_table(table, path / "part-000", row_group_size=20_000)
    for part in range(1, count // len(block)):
        shutil.copyfile(path / "part-000", path / f"part-{part:03d}")
    return path


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the peak")
@pytest.mark.parametrize("count", [100_000, pytest.param(2_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("container", ["zstd", "parts", "one row group"])
def test_memory_does_not_grow_with_the_file(container: str, count: int, tmp_path: Path) -> None:
    path = write_many(tmp_path / "edits", container, count)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True, cwd=ROOT)
    read, grown = map(int, done.stdout.split())
    assert read == count
    assert grown < 200, f"{grown} MB"


# --- any content


NAMES = sorted({name for _, record, _ in CASES.values() for name in record})
NEARLY = st.dictionaries(
    st.sampled_from(NAMES), JUNK | st.dictionaries(st.sampled_from(["str", "prompt", "subject", "target_new"]), JUNK), max_size=8
)
GOOD_ONES = st.sampled_from([record for _, record, _ in CASES.values()])


def read_all(content: bytes, format: str) -> list[NumberedRequest | BadRecord] | None:
    found = recognised(content, format)
    return None if found is None else found[1]


def recognised(content: bytes, format: str) -> tuple[str, list[NumberedRequest | BadRecord]] | None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(content)
        try:
            edits = EditFile(file.name, format)
            return edits.format.name, list(edits)
        except InputError as error:
            message = str(error)
    assert message.startswith(f"{file.name}: ")
    assert len(message.splitlines()) == 1
    return None


@settings(deadline=None, max_examples=150)
@given(st.lists(GOOD_ONES | NEARLY | JUNK, max_size=6), st.booleans(), st.sampled_from(["auto", *FORMATS]))
@example([{"alt": {}, "requested_rewrite": [None, None]}], False, "mquake")
def test_every_record_of_any_json_comes_out_numbered_or_the_file_is_refused(values: list[Any], as_array: bool, format: str) -> None:
    text = json.dumps(values) if as_array else "\n".join(json.dumps(value) for value in values)
    if (read := recognised(text.encode(), format)) is not None:
        name, found = read
        as_array = as_array or text.startswith("[")
        edits = sum(edits_of(value, name) for value in (json.loads(text) if as_array else values))
        assert [record.number for record in found] == list(range(1, edits + 1))
        assert all(isinstance(record, NumberedRequest | BadRecord) for record in found)


def edits_of(value: Any, format: str) -> int:
    """Edits of a record: one, or in MQuAKE's format one for each member of a list of rewrites."""
    rewrites = value.get("requested_rewrite") if format == "mquake" and isinstance(value, dict) else None
    return len(rewrites) if isinstance(rewrites, list) and rewrites else 1


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
        path = write_file(Path(folder) / "edits", json.dumps(values, indent=indent))
        found = [value if isinstance(value, dict) else value.raw for _, value in read_parts(find_parts(path))]
    assert json.dumps(found) == json.dumps(values)  # as text, where NaN equals NaN


@pytest.mark.skipif(not PUBLIC_DATA.is_dir(), reason="the data sets lie beside the repository, not in it")
@pytest.mark.parametrize(
    ("name", "format", "count", "convert"),
    [
        ("counterfact-edit.json", "counterfact", 10_000, lambda r: (r["prompt"], r["target_new"], r["rephrase_prompt"], r["locality_prompt"])),
        ("zsre_mend_edit.json", "zsre", 1_037, lambda r: (r["src"], r["alt"], r["rephrase"], r["loc"])),
    ],
)
def test_the_public_data_sets_are_read_whole(name: str, format: str, count: int, convert: Callable[[dict[str, Any]], tuple[str, ...]]) -> None:
    file = EditFile(PUBLIC_DATA / name)
    read = list(file)
    assert file.format.name == format
    assert [record.number for record in read] == list(range(1, count + 1))
    requests = [record.request for record in read if isinstance(record, NumberedRequest)]
    expected = [convert(record) for record in json.loads((PUBLIC_DATA / name).read_text())]
    assert [(r.prompt, r.target, r.rephrase, r.locality_prompt) for r in requests] == expected
