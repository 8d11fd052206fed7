"""Files as people have them: tables, Arrow, what ``datasets`` saves, standard input; and what holds no edits says how to convert it."""

import csv
import gzip
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from editing import EditRequest, InputError
from editing.datasets import BadRecord, EditFile, NumberedRequest
from orchestrator.digest import InputDigest
from tests.support.paths import ROOT

RECORDS: list[dict[str, Any]] = [
    {"prompt": "Italy's capital is", "target": "Rome", "subject": "Italy", "persona": ["Arr, Italy's capital?"]},
    {"prompt": 'The "eternal" city, they say, is', "target": "Rome; or\nMilan"},
    {"prompt": "日本の首都は", "target": "東京", "portability_prompt": ["a", "b"], "portability_answer": ["c", "d"]},
    {"prompt": "[1, 2] has the length", "target": "2"},
]
EXPECTED = [EditRequest(**record) for record in RECORDS]
COLUMNS = sorted({name for record in RECORDS for name in record})


def requests(path: Path, format: str = "auto", after: int = 0) -> list[EditRequest]:
    found = list(EditFile(path, format).records(after=after))
    assert not [one for one in found if isinstance(one, BadRecord)], found
    assert [one.number for one in found] == list(range(after + 1, after + 1 + len(found)))
    return [one.request for one in found if isinstance(one, NumberedRequest)]


def table(delimiter: str, line_end: str = "\n") -> str:
    text = io.StringIO(newline="")
    rows = csv.writer(text, delimiter=delimiter, lineterminator=line_end)
    rows.writerow(COLUMNS)
    for record in RECORDS:
        cells = [record.get(name, "") for name in COLUMNS]
        rows.writerow([json.dumps(cell) if isinstance(cell, list) else cell for cell in cells])
    return text.getvalue()


# --- tables


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_a_table_with_a_header_is_read_as_its_rows_say(delimiter: str, line_end: str, packed: Any, tmp_path: Path) -> None:
    path = tmp_path / "edits"
    path.write_bytes(packed(b"\xef\xbb\xbf\n" + table(delimiter, line_end).encode()))
    assert requests(path) == EXPECTED
    assert requests(path, after=2) == EXPECTED[2:]
    assert EditFile(path).format.name == "jsonl"


def test_parts_of_a_folder_may_be_tables(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(table(","))
    assert requests(tmp_path) == EXPECTED * 2
    assert requests(tmp_path, after=5) == EXPECTED[1:]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"a,b,c", "has 3 cells; the header names 2 columns"),
        (b"a", "has 1 cells; the header names 2 columns"),
        (b"caf\xe9,b", "prompt: is not valid UTF-8; save the table as UTF-8"),
        (b'"a"b,c', "is not a row of the table ("),
        (b"a,", "target: missing"),
    ],
)
def test_a_row_that_does_not_fit_costs_no_other(row: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "edits").write_bytes(b"prompt,target\na,b\n" + row + b"\nc,d\n")
    first, bad, last = EditFile(tmp_path / "edits")
    assert isinstance(first, NumberedRequest)
    assert isinstance(bad, BadRecord)
    assert bad.reason.startswith(reason)
    assert isinstance(last, NumberedRequest)
    assert (bad.number, last.number, last.request) == (2, 3, EditRequest("c", "d"))


def test_tables_of_other_formats_are_recognised_by_their_columns(tmp_path: Path) -> None:
    (tmp_path / "edits").write_text('case_id,prompt,target_new,subject,neighborhood_prompts\n3,"{} is","{""str"": ""x""}",Italy,"[""Spain is""]"\n')
    (request,) = requests(tmp_path / "edits")
    assert request == EditRequest("Italy is", '{"str": "x"}', id="3", subject="Italy", locality_prompt="Spain is")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,target,prompt\na,b,c\n", "found two called 'prompt'"),
        ("prompt,target\n", "holds no record"),
        ("question,answer\na,b\n", "of no known format; its first record has the fields 'answer', 'question'"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "edits").write_text(text)
    with pytest.raises(InputError, match=words) as error:
        list(EditFile(tmp_path / "edits"))
    assert len(str(error.value).splitlines()) == 1


def test_prose_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "edits").write_text("Once upon a time, there was\n")
    with pytest.raises(InputError, match="record 1: is not JSON"):
        list(EditFile(tmp_path / "edits"))


# --- Arrow


def arrow(path: Path, *, stream: bool, rows: int = 2) -> None:
    found = pa.Table.from_pylist([{name: record.get(name) for name in COLUMNS} for record in RECORDS])
    with pa.OSFile(str(path), "wb") as file, (pa.ipc.new_stream if stream else pa.ipc.new_file)(file, found.schema) as writer:
        writer.write_table(found, max_chunksize=rows)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "file"])
def test_arrow_is_read_a_batch_at_a_time(stream: bool, tmp_path: Path) -> None:
    arrow(tmp_path / "edits", stream=stream)
    assert requests(tmp_path / "edits") == EXPECTED
    for after in range(5):
        assert requests(tmp_path / "edits", after=after) == EXPECTED[after:]
    assert EditFile(tmp_path / "edits").num_records == len(RECORDS)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "file"])
def test_a_damaged_arrow_file_is_one_line(stream: bool, tmp_path: Path) -> None:
    arrow(tmp_path / "edits", stream=stream)
    whole = (tmp_path / "edits").read_bytes()
    (tmp_path / "edits").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="edits: the Arrow file is damaged or cut off"):
        list(EditFile(tmp_path / "edits"))


def save_dataset(folder: Path, **state: Any) -> Path:
    """What ``datasets.Dataset.save_to_disk`` writes."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-00002.arrow" for i in range(2)]
    for name in names:
        arrow(folder / name, stream=True)
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], "_split": "train", **state}))
    return folder


def test_what_datasets_saved_is_read_without_it(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "set")
    assert requests(folder) == EXPECTED * 2
    assert EditFile(folder).num_records == 2 * len(RECORDS)
    with InputDigest(folder, EditFile(folder).parts) as digest:
        assert len(digest.result()) == 64
    assert "datasets" not in sys.modules


def test_splits_and_picked_rows_are_refused_with_what_to_do(tmp_path: Path) -> None:
    save_dataset(tmp_path / "all" / "train")
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputError, match=r"several splits \(train, test\); give the folder of one of them"):
        list(EditFile(tmp_path / "all"))
    picked = save_dataset(tmp_path / "picked", _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(InputError, match=r"picked by an index; save it again after flatten_indices\(\)"):
        list(EditFile(picked))


# --- what holds no edits


def workbook() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("xl/workbook.xml"), "<workbook/>")  # of a fixed time: the bytes name a test
    return file.getvalue()


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr(zipfile.ZipInfo("edits.json"), "[]")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (workbook(), r"is an Excel workbook; save its sheet as CSV UTF-8, or run pandas\.read_excel"),
        (archive(), "is a ZIP archive; unpack it"),
        (b"PK\x03\x04 cut", "is a ZIP archive"),
        (b"\xd0\xcf\x11\xe0 old", "is an old Excel workbook"),
        (b"BZh91AY", "is compressed with bzip2"),
        (b"\xfd7zXZ\x00", "is compressed with xz"),
        (b"\x80\x04\x95 pickle", "is a Python pickle"),
        ("prompt,target\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        (b"SQLite format 3\x00", "is an SQLite database"),
    ],
)
def test_what_holds_no_edits_says_how_to_convert_it(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "edits").write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        list(EditFile(tmp_path / "edits"))
    assert len(str(error.value).splitlines()) == 1


def test_a_real_workbook_is_refused(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["prompt", "target"])
    book.save(tmp_path / "edits.xlsx")
    with pytest.raises(InputError, match="is an Excel workbook"):
        list(EditFile(tmp_path / "edits.xlsx"))


# --- standard input


TWICE = """
from editing.datasets import EditFile
for _ in range(2):
    file = EditFile("-")
    print(file.path, file.format.name, [one.request.target for one in file])
"""


def piped(content: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", TWICE], input=content, capture_output=True, check=False, cwd=ROOT)


def test_standard_input_can_be_read_as_often_as_a_file(tmp_path: Path) -> None:
    done = piped(gzip.compress(json.dumps(RECORDS[:2]).encode()))
    assert done.stdout.decode().splitlines() == ["standard input jsonl ['Rome', 'Rome; or\\nMilan']"] * 2, done.stderr.decode()


def test_nothing_on_standard_input_is_one_line() -> None:
    done = piped(b"")
    assert done.returncode == 1
    assert (
        done.stderr.decode().splitlines()[-1].endswith("standard-input: is empty; expected edits as JSON lines, a JSON array, CSV, Parquet or Arrow")
    )
