"""``ultraedit data``: what a file holds, and other files out of it; and probes of several prompts through a whole run."""

import gzip
import json
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from editing import EditRequest
from editing.datasets import EditFile, NumberedRequest
from orchestrator.data import inspection
from orchestrator.data.inspection import Lengths
from orchestrator.run.conflicts import PromptIndex
from orchestrator.run.ledger import Ledger
from tests.support.command_line import FinishedRun, Outcome
from tests.support.edit_files import KNOWEDIT, MEND, MQUAKE, WIKIBIGEDIT
from tests.support.paths import ROOT

Ultraedit = Callable[..., Outcome]
WriteJsonl = Callable[..., Path]


def requests(path: Path) -> list[EditRequest]:
    return [record.request for record in EditFile(path) if isinstance(record, NumberedRequest)]


def many(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"The capital of island {i // 2} is", "target": f"city {i}"} for i in range(count)]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- inspect


RECORDS = [
    {"prompt": "a", "target": "x" * 4, "persona": ["p", "q"], "id": 1},
    {"prompt": "bb", "target": "y"},
    {"prompt": "a", "target": "x" * 4},
    {"prompt": "a", "target": "z"},
    b"not JSON",
    {"prompt": "c", "target": 5},
    {"prompt": "c", "target": [], "multi_hop_prompt": "m"},
    {"prompt": "a", "target": "z", "multi_hop_prompt": "m", "multi_hop_answer": "n"},
    b'{"prompt": "\\ud800", "target": "z"}',
    b"nor this",
]


def test_inspect_says_what_a_file_holds(tmp_path: Path, write_jsonl: WriteJsonl, ultraedit: Ultraedit) -> None:
    path = write_jsonl(tmp_path / "edits.jsonl", RECORDS)
    found = json.loads(ultraedit("data", "inspect", path, "--json").stdout)
    assert {name: found[name] for name in ("format", "parts", "records", "usable", "duplicates", "conflicts")} == {
        "format": "jsonl",
        "parts": 1,
        "records": 10,
        "usable": 5,
        "duplicates": 2,
        "conflicts": 1,
    }
    assert found["with"] == {"id": 1, "persona": 1, "multi_hop_prompt": 1}
    assert found["probes"] == {"persona": 2, "multi_hop": 1}
    assert found["characters"]["target"] == {"min": 1, "mean": 2.2, "median": 1, "p95": 4, "max": 4}
    assert found["conflict_examples"] == [{"record": 4, "prompt": "a", "target": "z", "earlier_record": 3}]
    assert [(entry["count"], entry["first_record"]) for entry in found["bad"].values()] == [(2, 5), (1, 6), (1, 7), (1, 9)]
    assert "tokens" not in found
    assert found["preview"][0] == {"prompt": "a", "target": "xxxx", "id": "1", "persona": ["p", "q"]}
    shown = ultraedit("data", "inspect", path)
    assert shown.code == 0
    words = " ".join(shown.stdout.split())  # lines break where the path's length wants it
    assert all(text in words for text in ("format jsonl", "(2 prompts)", "lone surrogate", "expected a non-empty string, found int", "conflicts"))


def test_inspect_counts_tokens_of_a_model_and_what_it_cannot_take(
    tmp_path: Path, llama_tiny: Path, write_jsonl: WriteJsonl, ultraedit: Ultraedit
) -> None:
    from transformers import AutoTokenizer

    model = llama_tiny / "model"
    edits = [{"prompt": "The capital of Samoa is", "target": "Apia"}, {"prompt": "long " * 4000, "target": "b"}]
    found = json.loads(ultraedit("data", "inspect", write_jsonl(tmp_path / "edits", edits), "--model", model, "--json").stdout)
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert found["tokens"]["prompt"]["max"] == len(tokenizer("The capital of Samoa is")["input_ids"])
    assert found["tokens"]["target"]["max"] == len(tokenizer(" Apia", add_special_tokens=False)["input_ids"])
    (bad,) = found["bad"].values()
    assert (found["usable"], bad["first_record"]) == (1, 2)
    assert "tokens long" in bad["reason"]


def test_kinds_of_reasons_are_bounded(tmp_path: Path, write_jsonl: WriteJsonl, ultraedit: Ultraedit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "_REASONS", 2)
    path = write_jsonl(tmp_path / "edits.jsonl", RECORDS)
    bad = json.loads(ultraedit("data", "inspect", path, "--json").stdout)["bad"]
    assert sum(entry["count"] for entry in bad.values()) == 5
    assert len(bad) == 3
    assert bad["other reasons"]["count"] == 2  # a list as a target, and the surrogate


def test_lengths_are_those_of_a_sorted_list() -> None:
    lengths, values = Lengths(), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]
    for value in values:
        lengths.add(value)
    assert lengths.summary() == {"min": 1, "mean": 4.85, "median": sorted(values)[9], "p95": sorted(values)[18], "max": 9}


def test_the_index_on_disk_says_what_the_one_in_memory_says() -> None:
    told = []
    for on_disk in (False, True):
        index = PromptIndex(on_disk=on_disk)
        told.append([index.see(EditRequest(f"p{i % 7}", f"t{i % 3}"), i) for i in range(60)])
    assert told[0] == told[1]
    assert Counter(None if earlier is None else earlier.same_target for earlier in told[1]) == {None: 7, False: 53}


MEASURE = """
import sys
from pathlib import Path
from editing.datasets import EditFile
from orchestrator.data.inspection import inspect
from orchestrator.data.selection import dealt, sampled, write
def kilobytes(name):
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])
source, out = EditFile(sys.argv[1]), Path(sys.argv[2])
list(zip(range(5000), source))
before = kilobytes("VmRSS")
inspect(source)
write(source, [out / "sample.parquet"], sampled(100, 0))
write(source, [out / "a.parquet", out / "b.parquet"], dealt([0.5, 0.5], 0))
print((kilobytes("VmHWM") - before) // 1000)
"""


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the peak")
@pytest.mark.parametrize("count", [15_000, pytest.param(2_000_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_file(count: int, tmp_path: Path) -> None:
    with (tmp_path / "edits.jsonl").open("w") as file:
        for i in range(count):
            file.write(json.dumps({"prompt": f"The capital of country {i} is", "target": f"city {i * 7919 % 100_003}"}) + "\n")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "edits.jsonl"), str(tmp_path)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    assert grown < 200, f"{grown} MB"  # of the index 64 MiB are kept in memory


# --- convert, sample, split


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl"])
@pytest.mark.parametrize("records", [[KNOWEDIT, WIKIBIGEDIT], [MEND], [{**MQUAKE, "requested_rewrite": MQUAKE["requested_rewrite"] * 2}]])
def test_convert_keeps_every_request(records: list[dict[str, Any]], name: str, tmp_path: Path, write_jsonl: WriteJsonl, ultraedit: Ultraedit) -> None:
    path = write_jsonl(tmp_path / "edits.jsonl", records)
    assert ultraedit("data", "convert", path, "-o", tmp_path / name).code == 0
    assert requests(tmp_path / name) == requests(path)
    assert EditFile(tmp_path / name).format.name == "jsonl"


def test_bad_records_are_set_aside_with_reason_and_content(tmp_path: Path, write_jsonl: WriteJsonl, ultraedit: Ultraedit) -> None:
    path = write_jsonl(tmp_path / "edits.jsonl", RECORDS)
    outcome = ultraedit("data", "sample", path, "-o", tmp_path / "out.parquet", "-n", "3")
    assert outcome.code == 0
    rejected = [json.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_text().splitlines()]
    assert [line["record"] for line in rejected] == [5, 6, 7, 9, 10]
    assert rejected[1] == {"record": 6, "reason": "target: expected a non-empty string, found int", "content": {"prompt": "c", "target": 5}}
    assert "record 6 set aside: target: expected a non-empty string, found int" in outcome.stderr
    write_jsonl(path, RECORDS[:2])
    assert ultraedit("data", "convert", path, "-o", tmp_path / "out.parquet", "--overwrite").code == 0
    assert files(tmp_path) == {"edits.jsonl", "out.parquet"}  # what was set aside the last time is gone


def test_a_sample_is_uniform_in_order_and_told_by_the_seed(tmp_path: Path, write_jsonl: WriteJsonl, ultraedit: Ultraedit) -> None:
    path, out = write_jsonl(tmp_path / "edits.jsonl", many(40)), tmp_path / "out.jsonl"
    drawn = []
    for seed in [*range(60), 0]:
        assert ultraedit("data", "sample", path, "-o", out, "-n", "10", "--seed", seed, "--overwrite").code == 0
        drawn.append([int(request.target.removeprefix("city ")) for request in requests(out)])
    assert all(len(set(chosen)) == 10 and chosen == sorted(chosen) for chosen in drawn)
    assert drawn[0] == drawn[-1] != drawn[1]
    often = Counter(i for chosen in drawn[:-1] for i in chosen)  # 15 times each, give or take 3.4
    assert set(often) == set(range(40))
    assert 3 <= min(often.values()) <= max(often.values()) <= 30
    assert ultraedit("data", "sample", path, "-o", out, "-n", "40", "--overwrite").code == 0
    assert requests(out) == requests(path)


def test_a_split_deals_out_every_edit_once_and_keeps_prompts_together(tmp_path: Path, write_jsonl: WriteJsonl, ultraedit: Ultraedit) -> None:
    path = write_jsonl(tmp_path / "edits.jsonl", many(600))
    flags = ["data", "split", path, "-o", tmp_path / "out.parquet", "--fractions", "0.7,0.2,0.1"]
    assert ultraedit(*flags).code == 0
    parts = [requests(tmp_path / f"out-{i}.parquet") for i in (1, 2, 3)]
    assert sorted(r.target for part in parts for r in part) == sorted(r.target for r in requests(path))
    prompts = [{r.prompt for r in part} for part in parts]
    assert sum(map(len, prompts)) == 300
    assert [round(len(p) / 300, 1) for p in prompts] == [0.7, 0.2, 0.1]
    again = ultraedit(*flags, "--overwrite")
    assert again.code == 0
    assert [requests(tmp_path / f"out-{i}.parquet") for i in (1, 2, 3)] == parts
    assert ultraedit(*flags, "--overwrite", "--seed", "1").code == 0
    assert requests(tmp_path / "out-1.parquet") != parts[0]
    fewer = write_jsonl(tmp_path / "fewer.jsonl", many(100))
    assert ultraedit("data", "split", fewer, "-o", tmp_path / "fewer.parquet", "--fractions", "0.7,0.2,0.1").code == 0
    assert {r.prompt for r in requests(tmp_path / "fewer-1.parquet")} <= prompts[0]  # where a prompt goes does not hang on the others


# --- what goes wrong


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["convert", "none.jsonl", "-o", "out"], ["none.jsonl: no such file"]),
        (["convert", "empty.jsonl", "-o", "out"], ["empty.jsonl: is empty"]),
        (["convert", "unknown.jsonl", "-o", "out"], ["of no known format", "'question'", "mquake"]),
        (["inspect", "unknown.jsonl"], ["of no known format", "'question'", "mquake"]),
        (["inspect", "cut.gz"], ["cut.gz: the gzip stream is damaged or cut off"]),
        (["convert", "cut.gz", "-o", "out"], ["cut.gz: the gzip stream is damaged or cut off"]),
        (["split", "cut.gz", "-o", "out", "--fractions", "0.5,0.5"], ["cut.gz: the gzip stream is damaged or cut off"]),
        (["convert", "bad.jsonl", "-o", "out"], ["bad.jsonl: holds no usable edit; record 1: target: expected a non-empty string, found int"]),
        (["convert", "some.jsonl", "-o", "out", "--strict"], ["some.jsonl: record 2: target: missing"]),
        (["sample", "some.jsonl", "-o", "out", "-n", "3"], ["n: expected at most 2, the number of usable edits, found 3"]),
        (["sample", "some.jsonl", "-o", "out", "-n", "0"], ["-n"]),
        (["split", "some.jsonl", "-o", "out", "--fractions", "0.5,0.6"], ["fractions: expected two or more", "0.5, 0.6"]),
        (["split", "some.jsonl", "-o", "out", "--fractions", "1"], ["fractions: expected two or more"]),
        (["split", "some.jsonl", "-o", "out", "--fractions", "nan,0.5"], ["fractions: expected two or more"]),
        (["split", "some.jsonl", "-o", "out", "--fractions", "a,b"], ["fractions: expected numbers like 0.8,0.1,0.1, found 'a,b'"]),
        (["convert", "some.jsonl", "-o", "some.jsonl"], ["some.jsonl is there already", "--overwrite"]),
        (["convert", "some.jsonl", "-o", "folder"], ["folder is there already"]),
        (["convert", "some.jsonl", "-o", "nowhere/out"], ["there is no folder nowhere"]),
        (["convert", "some.jsonl", "-o", "out", "--format", "xml"], ["--format", "wikibigedit"]),
        (["inspect", "some.jsonl", "--model", "folder"], ["folder"]),
    ],
)
def test_a_mistake_costs_one_line_and_writes_nothing(
    flags: list[str], words: list[str], tmp_path: Path, write_jsonl: WriteJsonl, ultraedit: Ultraedit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    write_jsonl(tmp_path / "empty.jsonl", [])
    write_jsonl(tmp_path / "unknown.jsonl", [{"question": "a", "answer": "b"}])
    write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "a", "target": 1}])
    write_jsonl(tmp_path / "some.jsonl", [{"prompt": "a", "target": "b"}, {"prompt": "a", "target": None}, {"prompt": "b", "target": "c"}])
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"".join(json.dumps(r).encode() + b"\n" for r in many(3000)))[:-1000])
    before = files(tmp_path)
    outcome = ultraedit("data", *flags)
    assert outcome.code not in (0, None)
    assert len(outcome.errors) == 1, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert [word for word in words if word not in outcome.errors[0]] == [], outcome.errors[0]
    assert files(tmp_path) == before


# --- probes of several prompts through a whole run


def test_a_run_measures_persona_and_multi_hop_where_the_data_has_them(
    tmp_path: Path, finished_run: FinishedRun, write_jsonl: WriteJsonl, edit_flags: list[str], ultraedit: Ultraedit
) -> None:
    pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    records = [{**WIKIBIGEDIT, "update": f"{WIKIBIGEDIT['update']} {i}", "mhop": None if i % 2 else WIKIBIGEDIT["mhop"]} for i in range(6)]
    edits = write_jsonl(tmp_path / "edits.jsonl", records)
    flags = ["--edits", edits, "--output", tmp_path / "out", "--edits-per-turn", "3", "--eval-at", "3", "--tracking-uri", uri, "--generate", "0"]
    outcome = ultraedit(*edit_flags, *flags)
    assert outcome.code == 0, outcome.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    rows = pq.read_table(tmp_path / "out" / "edits.parquet").to_pylist()
    assert [row["multi_hop"] is not None for row in rows] == [True, False] * 3
    assert rows[0]["persona"] == [WIKIBIGEDIT["personas"]]
    assert (rows[0]["multi_hop_prompt"], rows[1]["multi_hop_answer"]) == ([WIKIBIGEDIT["mhop"]], [])
    for name in ("generalization_persona", "multi_hop"):
        values = [row[name] for row in rows if row[name] is not None]
        assert metrics[name] == pytest.approx(sum(values) / len(values))
        assert metrics[f"{name}_before"] is not None
        assert metrics["milestones"][0][name] is not None
        assert f"\n{name} " in outcome.stdout
        assert name not in finished_run.outcome.stdout
        assert json.loads((finished_run.path / "metrics.json").read_text())[name] is None
    assert "\ngeneralization persona " in outcome.stdout.partition("On the way")[2]
    with sqlite3.connect(tmp_path / "mlflow.db") as tracked:
        logged = {name for (name,) in tracked.execute("select distinct key from metrics")}
    assert {"final_multi_hop", "final_generalization_persona", "eval_multi_hop"} <= logged
    assert [entry.request.persona for entry in Ledger(tmp_path / "out" / "ledger")] == [(WIKIBIGEDIT["personas"],)] * 6
    measured = ultraedit("evaluate", "--model", tmp_path / "out" / "model", "--edits", edits, "--generate", "0")
    assert "multi_hop" in measured.stdout


def test_a_run_of_before_there_were_such_probes_can_be_appended_to(
    tmp_path: Path, finished_run: FinishedRun, write_jsonl: WriteJsonl, ultraedit: Ultraedit
) -> None:
    out = shutil.copytree(finished_run.path, tmp_path / "out")
    for part in (out / "ledger").iterdir():
        pq.write_table(pq.read_table(part).drop_columns(["persona", "multi_hop_prompt", "multi_hop_answer"]), part)
    before = list(Ledger(finished_run.path / "ledger"))
    edits = write_jsonl(tmp_path / "more.jsonl", [{"prompt": "a", "target": "b", "persona": ["c"]}])
    outcome = ultraedit("edit", "--resume", out, "--edits", edits, "--tracking-uri", "none", "--generate", "0")
    assert outcome.code == 0, outcome.stderr
    *old, new = Ledger(out / "ledger")
    assert old == before
    assert new.request == EditRequest("a", "b", persona=("c",))
    assert json.loads((out / "metrics.json").read_text())["generalization_persona"] is not None
