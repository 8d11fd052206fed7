"""Edits that are chats go through all that edits go through: files, resume, rollback, removal, evaluation, a small memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from editing.datasets import EditFile
from editing.datasets.writing import RequestWriter
from orchestrator.run.ledger import Ledger
from tests.support.command_line import Outcome
from tests.support.tiny_runs import MODEL, RECORDS, digests

SYSTEM = {"role": "system", "content": "You are brief."}
SETTINGS = ["--modules", "model.layers.{1,2}.mlp.{gate,up}_proj", "--learning-rate", "3e-3", "--edits-per-turn", "4", "--group-size", "2"]
SETTINGS += ["--lookahead", "1", "--checkpoint-every", "1", "--tracking-uri", "none"]


def mixed(count: int) -> list[dict[str, Any]]:
    """Every other edit a chat."""
    found: list[dict[str, Any]] = []
    for number, record in enumerate(RECORDS[:count]):
        question = {"role": "user", "content": record["prompt"]}
        asked = {"messages": [SYSTEM, question]} if number % 2 else {"prompt": record["prompt"]}
        found.append({"id": f"e{number}", **asked, "target": record["ans"], "rephrase": record["rephrase_prompt"]})
    return found


@pytest.fixture
def edits(tmp_path: Path, write_jsonl: Any) -> Path:
    return Path(write_jsonl(tmp_path / "edits.jsonl", mixed(12)))


@pytest.fixture
def edit(chat_model: Path, tmp_path: Path, ultraedit: Callable[..., Outcome]) -> Callable[..., Path]:
    def run(name: str, file: Path, *more: object) -> Path:
        out = tmp_path / name
        outcome = ultraedit("edit", "--model", chat_model, "--edits", file, "--output", out, *SETTINGS, *more)
        assert outcome.code == 0, outcome.stderr
        return out

    return run


@pytest.mark.thorough
def test_the_same_edits_in_any_container_give_the_same_bits(edits: Path, edit: Callable[..., Path], tmp_path: Path) -> None:
    array, table = tmp_path / "edits.json", tmp_path / "edits.parquet"
    array.write_text(json.dumps(mixed(12)))
    pq.write_table(pa.Table.from_pylist([{"prompt": None, "messages": None, **record} for record in mixed(12)]), table)
    with RequestWriter(tmp_path / "again.parquet") as columns, RequestWriter(tmp_path / "again.jsonl") as lines:
        for found in EditFile(edits):
            columns.write(found.request)  # type: ignore[union-attr]
            lines.write(found.request)  # type: ignore[union-attr]
    expected = digests(edit("lines", edits, "--no-eval"))
    for number, file in enumerate((array, table, tmp_path / "again.parquet", tmp_path / "again.jsonl")):
        assert digests(edit(str(number), file, "--no-eval")) == expected


@pytest.mark.thorough
def test_a_chat_is_evaluated_generated_shown_resumed_rolled_back_and_removed(
    edits: Path, edit: Callable[..., Path], ultraedit: Callable[..., Outcome], write_jsonl: Any, tmp_path: Path, chat_model: Path
) -> None:
    whole = edit("whole", edits)
    rows = {row["id"]: row for row in pq.read_table(whole / "edits.parquet").to_pylist()}
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["edits"] == 12
    assert rows["e1"]["messages"] == [SYSTEM, {"role": "user", "content": RECORDS[1]["prompt"]}]
    assert rows["e1"]["text_after"] is None
    assert rows["e1"]["chat_text_after"]
    assert rows["e0"]["text_after"]
    assert rows["e1"]["efficacy"] >= rows["e1"]["efficacy_before"]
    assert sum(rows[f"e{i}"]["efficacy"] for i in range(1, 12, 2)) > sum(rows[f"e{i}"]["efficacy_before"] for i in range(1, 12, 2))
    assert RECORDS[1]["prompt"].split()[0] in ultraedit("history", whole, "--edits").stdout
    assert RECORDS[1]["prompt"].split()[0] in ultraedit("show", whole).stdout

    model, tokenizer = AutoModelForCausalLM.from_pretrained(whole / "model"), AutoTokenizer.from_pretrained(whole / "model")
    ids = tokenizer.apply_chat_template(rows["e1"]["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        text = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(text, skip_special_tokens=True) == rows["e1"]["chat_text_after"]

    start = edit("parts", write_jsonl(tmp_path / "first.jsonl", mixed(12)[:8]), "--no-eval")
    more = write_jsonl(tmp_path / "rest.jsonl", mixed(12)[8:])
    assert ultraedit("edit", "--resume", start, "--edits", more).code == 0
    assert digests(start) == digests(whole)
    assert [entry.request.messages for entry in Ledger(start / "ledger")] == [entry.request.messages for entry in Ledger(whole / "ledger")]

    assert ultraedit("rollback", start, "--to-turn", "2").code == 0
    assert digests(start) == digests(edit("two turns", tmp_path / "first.jsonl", "--no-eval"))

    without = edit("without", write_jsonl(tmp_path / "without.jsonl", [e for e in mixed(12) if e["id"] != "e3"][:7]), "--no-eval")
    asked_for = edit("asked for", tmp_path / "first.jsonl", "--no-eval")
    assert ultraedit("remove", asked_for, "--edit", "e3").code == 0
    assert [e.id for e in Ledger(asked_for / "ledger") if e.applied] == [e.id for e in Ledger(without / "ledger") if e.applied]


def test_evaluate_asks_a_chat_as_it_stands(edits: Path, edit: Callable[..., Path], ultraedit: Callable[..., Outcome], tmp_path: Path) -> None:
    run = edit("run", edits)
    told = json.loads((run / "metrics.json").read_text())
    outcome = ultraedit("evaluate", "--model", run / "model", "--edits", edits, "--output", tmp_path / "found.json")
    assert outcome.code == 0, outcome.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    for name in ("efficacy", "generalization", "chat_exact", "chat_contained", "efficacy_generated"):
        assert found[name] == pytest.approx(told[name]), name


def test_a_model_without_a_template_refuses_chats_alone(edits: Path, tmp_path: Path, ultraedit: Callable[..., Outcome], write_jsonl: Any) -> None:
    out = tmp_path / "out"
    assert ultraedit("edit", "--model", MODEL, "--edits", edits, "--output", out, *SETTINGS, "--no-eval").code == 0
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [line["record"] for line in rejected] == [2, 4, 6, 8, 10, 12]
    assert rejected[0]["reason"].startswith("messages: this model's tokenizer has no chat template to write them in; give a prompt")
    assert rejected[0]["content"]["messages"] == mixed(2)[1]["messages"]
    only = write_jsonl(tmp_path / "chats.jsonl", mixed(12)[1::2])
    outcome = ultraedit("edit", "--model", MODEL, "--edits", only, "--output", tmp_path / "none", *SETTINGS)
    assert outcome.code == 1
    assert len(outcome.stderr.strip().splitlines()[-1:]) == 1
    assert "no chat template" in outcome.stderr.strip().splitlines()[-1]


def test_the_later_answer_to_a_chat_wins(edit: Callable[..., Path], tmp_path: Path, write_jsonl: Any) -> None:
    records = mixed(4)
    records += [{**records[1], "id": "again", "target": "Lyon"}, {**records[1], "id": "other", "messages": records[1]["messages"][1:]}]
    out = edit("run", write_jsonl(tmp_path / "e.jsonl", records), "--no-eval")
    turns = map(json.loads, (out / "turns.jsonl").read_text().splitlines())
    assert [(c["record"], c["earlier_record"]) for turn in turns for c in turn["conflicts"]] == [(5, 2)]


@pytest.mark.thorough
def test_layers_read_from_disk_give_the_bits_of_a_model_in_memory(
    edits: Path, edit: Callable[..., Path], ultraedit: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, chat_model: Path
) -> None:
    monkeypatch.setattr("workers.engines.streamed.process_bytes", lambda _: 0)
    told = ultraedit("edit", "--model", chat_model, "--edits", edits, "--output", "nowhere", *SETTINGS, "--device-memory", "1KB").stderr
    smallest = told.partition("the smallest that works is ")[2].partition("MiB")[0] + "MiB"
    few = ["--limit", "8", "--generate", "3"]
    whole, streamed = edit("whole", edits, *few), edit("streamed", edits, *few, "--device-memory", smallest)
    assert digests(streamed) == digests(whole)
    columns = ["id", "efficacy", "chat_text_before", "chat_text_after"]
    assert pq.read_table(streamed / "edits.parquet", columns=columns) == pq.read_table(whole / "edits.parquet", columns=columns)


@pytest.mark.distributed
@pytest.mark.thorough
def test_two_shards_give_what_one_gives(edits: Path, edit: Callable[..., Path]) -> None:
    pytest.importorskip("deepspeed")
    one, two = edit("one", edits), edit("two", edits, "--shards", "2")
    columns = ["id", "efficacy", "efficacy_before", "chat_text_after"]
    assert pq.read_table(two / "edits.parquet", columns=columns) == pq.read_table(one / "edits.parquet", columns=columns)
