"""What a file has beside its edits is said: in ``data inspect``, at the start of a run, and as an error where the run is strict."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from editing.datasets import EditFile
from orchestrator.run.ledger import Ledger
from tests.support.command_line import FinishedRun, Outcome
from tests.support.edit_files import FLAT, MEND
from tests.support.paths import ROOT

Ultraedit = Callable[..., Outcome]
WriteJsonl = Callable[..., Path]

RECORDS: list[dict[str, Any]] = [
    {"prompt": "The capital of Italy is", "target": "Rome", "id": "a", "locality_promt": "x", "subject": "Italy"},
    {"prompt": "The capital of Spain is", "target": "Madrid", "ground_truth": "Madrid", "locality_promt": "x", "weather": 1},
    {"prompt": "The capital of Peru is", "target": "Lima", "id": "a", "subject": "Chile", "rephrase_prompts": ["b", "c"]},
    {"prompt": "The capital of Mali is", "target": "Kita", "relation_id": "P36", "id": "4"},
]


@pytest.fixture
def edits(tmp_path: Path, write_jsonl: WriteJsonl) -> Path:
    return write_jsonl(tmp_path / "edits.jsonl", RECORDS)


def test_inspect_counts_what_is_not_read_with_what_it_resembles(edits: Path, ultraedit: Ultraedit) -> None:
    found = json.loads(ultraedit("data", "inspect", edits, "--json").stdout)
    assert found["unread"] == {
        "locality_promt": {"count": 2, "first_record": 1, "did_you_mean": "locality_prompt"},
        "weather": {"count": 1, "first_record": 2},
    }
    assert found["unused"] == {"ground_truth": {"count": 1, "first_record": 2}, "relation_id": {"count": 1, "first_record": 4}}
    assert found["not_asked"] == {"rephrase_prompts": {"count": 1, "first_record": 3}}
    assert found["no_change"] == {"the target is the answer from before (ground_truth)": {"count": 1, "first_record": 2}}
    assert found["subject_not_in_prompt"] == {"count": 1, "first_record": 3}
    assert found["repeated_ids"] == {"count": 1, "first": {"id": "a", "earlier_record": 1, "record": 3}}
    shown = " ".join(ultraedit("data", "inspect", edits).stdout.split())
    for words in (
        "locality_promt: unread, no field of the format; did you mean locality_prompt?",
        "changes nothing: the target is the answer from before (ground_truth)",
        "id of an earlier edit; the first is 'a' of record 1",
        "the subject does not stand in the prompt",
        "rephrase_prompts: further questions, which are not asked",
        "known, and no edit needs them: ground_truth, relation_id",
    ):
        assert words in shown


def test_an_id_may_not_be_another_records_number_either(tmp_path: Path, write_jsonl: WriteJsonl, ultraedit: Ultraedit) -> None:
    path = write_jsonl(tmp_path / "edits.jsonl", [{"prompt": "a", "target": "b", "id": 2}, {"prompt": "c", "target": "d"}])
    assert json.loads(ultraedit("data", "inspect", path, "--json").stdout)["repeated_ids"]["first"] == {"id": "2", "earlier_record": 1, "record": 2}


def test_a_clean_file_says_nothing(tmp_path: Path, write_jsonl: WriteJsonl, ultraedit: Ultraedit) -> None:
    found = json.loads(ultraedit("data", "inspect", write_jsonl(tmp_path / "edits.jsonl", [FLAT]), "--json").stdout)
    assert (found["unread"], found["no_change"], found["subject_not_in_prompt"], found["repeated_ids"]) == ({}, {}, None, None)
    assert "What to know" not in ultraedit("data", "inspect", write_jsonl(tmp_path / "e", [{"prompt": "a", "target": "b"}])).stdout


@pytest.mark.parametrize("command", [["inspect"], ["convert", "-o", "out.jsonl"], ["sample", "-o", "out.jsonl", "-n", "1"]])
def test_a_strict_reader_refuses_an_unread_field_by_record_and_name(
    command: list[str], edits: Path, tmp_path: Path, ultraedit: Ultraedit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *flags = command
    outcome = ultraedit("data", name, edits, *flags, "--strict")
    assert outcome.code == 1
    assert outcome.errors == [
        f"error: {edits}: record 1: locality_promt: is not read; did you mean locality_prompt? Rename it or take it out, or go on without --strict"
    ]
    assert not (tmp_path / "out.jsonl").exists()


def test_a_run_says_it_first_and_a_strict_one_does_not_begin(edits: Path, tmp_path: Path, edit_flags: list[str], ultraedit: Ultraedit) -> None:
    flags = [*edit_flags, "--edits", edits, "--output", tmp_path / "out", "--generate", "0", "--save", "delta"]
    strict = ultraedit(*flags, "--strict")
    assert strict.code == 1
    assert "record 1: locality_promt: is not read" in strict.errors[-1]
    assert not (tmp_path / "out").exists()
    outcome = ultraedit(*flags)
    assert outcome.code == 0, outcome.stderr
    said = [line for line in outcome.stderr.splitlines() if line.startswith("edits ")]
    assert said == [
        "edits     locality_promt: unread in 2 records, record 1 the first; did you mean locality_prompt?",
        "edits     weather: unread in 1 record, record 2 the first",
        "edits     no change: the target is the answer from before (ground_truth) in 1 record, record 2 the first",
        "edits     ids: 1 record with an id that an earlier edit has, 'a' of records 1 and 3 the first",
    ]
    assert outcome.stderr.index(said[-1]) < outcome.stderr.index("model ")


def test_an_id_that_two_edits_have_is_not_removed_but_each_can_be(edits: Path, tmp_path: Path, edit_flags: list[str], ultraedit: Ultraedit) -> None:
    out = tmp_path / "out"
    assert ultraedit(*edit_flags, "--edits", edits, "--output", out, "--generate", "0", "--save", "delta").code == 0
    both = ultraedit("remove", out, "--edit", "a")
    assert both.code == 1
    assert both.errors == [f"error: edit: {out} has 2 edits with the id 'a', of records 1, 3; name one of them as a@1, or each of them"]
    assert ultraedit("remove", out, "--edit", "a@1", "--edit", "4").code == 0
    assert [entry.record for entry in Ledger(out / "ledger")] == [2, 3]
    assert ultraedit("remove", out, "--edit", "a").code == 0
    assert [entry.record for entry in Ledger(out / "ledger")] == [2]


def test_portability_goes_through_a_whole_run(
    tmp_path: Path, finished_run: FinishedRun, write_jsonl: WriteJsonl, edit_flags: list[str], ultraedit: Ultraedit
) -> None:
    question = {"New Question": "Its river?", "New Answer": "Tiber"}
    records = [{**MEND, "src": f"{MEND['src']} {i}", "portability": question if i else None} for i in range(3)]
    edits = write_jsonl(tmp_path / "edits.jsonl", records)
    outcome = ultraedit(*edit_flags, "--edits", edits, "--output", tmp_path / "out", "--edits-per-turn", "1", "--eval-at", "2", "--generate", "0")
    assert outcome.code == 0, outcome.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    rows = pq.read_table(tmp_path / "out" / "edits.parquet").to_pylist()
    assert [row["portability"] is not None for row in rows] == [False, True, True]
    assert metrics["portability"] == pytest.approx((rows[1]["portability"] + rows[2]["portability"]) / 2)
    assert metrics["portability_before"] is not None
    assert metrics["milestones"][0]["portability"] is not None
    assert metrics["multi_hop"] is None
    assert "portability" in outcome.stdout
    shutil.copytree(finished_run.path, tmp_path / "old")
    for part in (tmp_path / "old" / "ledger").glob("part-*"):  # as a version without such probes wrote it
        pq.write_table(pq.read_table(part).drop_columns(["portability_prompt", "portability_answer"]), part)
    assert all(entry.request.portability_prompt == () for entry in Ledger(tmp_path / "old" / "ledger"))


@pytest.mark.thorough
def test_edits_from_standard_input_are_edited_measured_and_resumed(tmp_path: Path, edits: Path, edit_flags: list[str]) -> None:
    def run(*flags: object, text: bytes) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "orchestrator", *map(str, flags)]
        return subprocess.run(command, input=text, capture_output=True, check=False, cwd=ROOT)

    out, whole = tmp_path / "out", edits.read_bytes()
    done = run(*edit_flags, "--edits", "-", "--output", out, "--generate", "0", "--save", "delta", "--warm-up", "2", text=whole)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads((out / "metrics.json").read_text())["evaluated"] == len(RECORDS)
    again = run(*edit_flags, "--resume", out, "--edits", "-", "--generate", "0", "--save", "delta", "--warm-up", "2", text=whole)
    assert b"has all edits of standard input; nothing to do" in again.stderr
    empty = run("data", "inspect", "-", text=b"")
    assert empty.returncode == 1
    assert empty.stderr.decode().splitlines()[-1].endswith("is empty; expected edits as JSON lines, a JSON array, CSV, Parquet or Arrow")
    assert len(list(EditFile(edits))) == len(RECORDS)
