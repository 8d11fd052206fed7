"""``rejected.jsonl`` is valid JSON for any reader, whatever the input held."""

import datetime
import decimal
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from editing.requests import EditRequest
from orchestrator.jsonl import LineFile
from orchestrator.rejected import RejectedRecords, as_json
from tests.support.command_line import Outcome

NESTED = b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}"

LINES: dict[str, bytes] = {
    "NaN": b'{"prompt": "p", "target": NaN}',
    "an infinity": b'{"prompt": "p", "target": -Infinity, "more": [Infinity]}',
    "a number that overflows": b'{"prompt": "p", "target": 1e999}',
    "half of a surrogate pair": b'{"prompt": "\\ud83d", "\\udc00": 1}',
    "bytes that are not UTF-8": b'{"prompt": "\xff\xfe"}',
    "a null character": b'{"prompt": "\\u0000", "target": 5}',
    "hundreds of brackets": NESTED,
    "a number of thousands of digits": b'{"prompt": ' + b"9" * 5000 + b"}",
    "no object": b'"only a string \\ud800"',
}


def strictly(text: str) -> Any:
    """As a reader takes it that knows JSON's grammar (RFC 8259) alone and refuses text that has no UTF-8."""

    def refuse(name: str) -> float:
        raise ValueError(f"{name} is not JSON")

    assert not re.search(r"(?<!\\)\\ud[89a-f]", re.sub(r"\\ud[89ab]..\\ud[c-f]..", "", text)), "half of a surrogate pair"
    return json.loads(text, parse_constant=refuse)


def rejected(path: Path) -> list[Any]:
    return [strictly(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("line", LINES.values(), ids=list(LINES))
def test_a_run_writes_valid_json_of_a_record_that_holds(
    line: bytes, tmp_path: Path, ultraedit: Callable[..., Outcome], edit_flags: list[str], write_jsonl: Callable[..., Path]
) -> None:
    edits = write_jsonl(tmp_path / "edits.jsonl", [{"prompt": "The capital of France is", "target": "Lyon"}, line])
    outcome = ultraedit(*edit_flags, "--edits", edits, "--output", tmp_path / "out", "--no-eval")
    assert outcome.code == 0, outcome.stderr
    (row,) = rejected(tmp_path / "out" / "rejected.jsonl")
    assert row["record"] == 2
    assert row["reason"]


@pytest.mark.parametrize("line", LINES.values(), ids=list(LINES))
def test_a_conversion_does_too(line: bytes, tmp_path: Path, ultraedit: Callable[..., Outcome], write_jsonl: Callable[..., Path]) -> None:
    edits = write_jsonl(tmp_path / "edits.jsonl", [{"prompt": "The capital of France is", "target": "Lyon"}, line])
    outcome = ultraedit("data", "convert", edits, "-o", tmp_path / "all.jsonl")
    assert outcome.code == 0, outcome.stderr
    assert [row["record"] for row in rejected(tmp_path / "all.rejected.jsonl")] == [2]


def test_values_that_only_parquet_has_are_written_as_text(tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    when = datetime.datetime(2020, 2, 29, tzinfo=datetime.UTC)
    rows = {
        "prompt": ["The capital of France is", "p"],
        "target": ["Lyon", ""],
        "bytes": [None, b"\x00\xff"],
        "nan": [None, float("nan")],
        "map": pa.array([None, [("key", float("inf"))]], type=pa.map_(pa.string(), pa.float64())),
        "when": [None, when],
        "amount": [None, decimal.Decimal("1.50")],
    }
    pq.write_table(pa.table(rows), tmp_path / "edits.parquet")
    outcome = ultraedit("data", "convert", tmp_path / "edits.parquet", "-o", tmp_path / "all.jsonl")
    assert outcome.code == 0, outcome.stderr
    (row,) = rejected(tmp_path / "all.rejected.jsonl")
    assert row["content"] == {
        "prompt": "p",
        "target": "",
        "bytes": "\x00\\xff",
        "nan": "NaN",
        "map": [["key", "Infinity"]],
        "when": str(when),
        "amount": "1.50",
    }


def test_what_is_plain_stays_as_it_is() -> None:
    plain = {"a": [1, 2.5, None, True, "é😀", {"b": []}], "c": 10**40}
    assert as_json(plain) == plain
    assert json.loads(json.dumps(as_json(plain))) == plain


def test_an_edit_is_written_with_its_id_and_the_last_reason_is_known(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "rejected.jsonl", 0)
    records = RejectedRecords(file)
    assert records.last_reason() is None
    records.add_edit(3, EditRequest("p", "t"), "first", edit_id="3")
    records.add_edit(4, EditRequest("q", "t", id="mine"), "then")
    assert records.last_reason() == "then"
    file.close()
    assert rejected(file.path) == [
        {"record": 3, "reason": "first", "content": {"id": "3", "prompt": "p", "target": "t"}},
        {"record": 4, "reason": "then", "content": {"id": "mine", "prompt": "q", "target": "t"}},
    ]
