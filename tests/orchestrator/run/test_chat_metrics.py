"""What a run tells of a chat model: what it answers in chat comes first, and is what the saved model answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.command_line import Outcome
from tests.support.tiny_runs import MODEL, RECORDS


@pytest.fixture
def run(chat_model: Path, tmp_path: Path, ultraedit: Callable[..., Outcome], write_jsonl: Any) -> tuple[Path, Outcome]:
    fields = {"prompt": "prompt", "target": "ans", "rephrase": "rephrase_prompt", "locality_prompt": "loc"}
    records = [{new: r[old] for new, old in fields.items() if r.get(old)} for r in RECORDS[:8]]
    settings = ["--modules", "model.layers.{1,2}.mlp.{gate,up}_proj", "--learning-rate", "3e-3", "--tracking-uri", "none"]
    out = tmp_path / "out"
    outcome = ultraedit("edit", "--model", chat_model, "--edits", write_jsonl(tmp_path / "edits.jsonl", records), "--output", out, *settings)
    assert outcome.code == 0, outcome.stderr
    return out, outcome


def test_the_table_begins_with_what_is_answered_in_chat(run: tuple[Path, Outcome]) -> None:
    out, outcome = run
    assert "What the model answers in chat" in outcome.stdout
    metrics = json.loads((out / "metrics.json").read_text())
    shown = [line.split()[0] for line in outcome.stdout.splitlines() if line.split() and line.split()[0] in metrics]
    assert shown[:2] == ["chat_exact", "chat_contained"]
    assert shown.index("chat_retention") < shown.index("efficacy_generated") < shown.index("efficacy")
    rows = pq.read_table(out / "edits.parquet").to_pylist()
    assert metrics["chat_contained"] == sum(row["chat_contained"] for row in rows) / len(rows)
    assert 0 <= metrics["chat_retention"] <= 1
    assert metrics["generated"] == len(rows)


def test_the_answer_in_chat_is_what_the_saved_model_writes_after_its_template(run: tuple[Path, Outcome]) -> None:
    out, _ = run
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out / "model"), AutoTokenizer.from_pretrained(out / "model")
    for row in pq.read_table(out / "edits.parquet").to_pylist()[:3]:
        messages = [{"role": "user", "content": row["prompt"]}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False)[0, ids.shape[1] :]
        assert tokenizer.decode(written, skip_special_tokens=True) == row["chat_text_after"]
        assert row["chat_stopped"] is (len(written) < 32 or int(written[-1]) == model.generation_config.eos_token_id)


def test_a_model_without_a_template_has_no_metrics_of_chats(tmp_path: Path, ultraedit: Callable[..., Outcome], write_jsonl: Any) -> None:
    records = [{"prompt": r["prompt"], "target": r["ans"]} for r in RECORDS[:4]]
    settings = ["--modules", "model.layers.1.mlp.up_proj", "--learning-rate", "1e-3", "--tracking-uri", "none"]
    outcome = ultraedit("edit", "--model", MODEL, "--edits", write_jsonl(tmp_path / "e.jsonl", records), "--output", tmp_path / "out", *settings)
    assert outcome.code == 0, outcome.stderr
    assert "chat" not in outcome.stdout
    assert "generated_stopped" in outcome.stdout
    assert not [name for name in json.loads((tmp_path / "out" / "metrics.json").read_text()) if name.startswith("chat")]
