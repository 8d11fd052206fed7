"""Runs of the tiny Llama in ten short turns, and what their folders say."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from tests.support.paths import PARITY

MODEL = PARITY / "llama-tiny" / "model"
CHAT_TEMPLATE = "{% for message in messages %}User: {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
TURNS, PER_TURN = 10, 6
RECORDS: list[dict[str, str]] = json.loads((PARITY / "llama-tiny" / "edits.json").read_text())

SOLVED = ["--passes", "2", "--preserve", "exact", "--preserve-text", "everyday", "--subject-modules", "model.layers.0.mlp.down_proj"]
SOLVED += ["--subject-targets", "solved", "--subject-steps", "3", "--subject-bound", "3", "--subject-weight", "20", "--subject-contexts", "1"]
SOLVED += ["--framings", "raw,question", "--answer-end", "stop"]


def arguments(edits: Path, out: Path, *more: object) -> list[str]:
    settings = ["--modules", "model.layers.{1,2}.mlp.{gate,up}_proj", "--learning-rate", "1e-3", "--edits-per-turn", str(PER_TURN)]
    loop = ["--lookahead", "2", "--checkpoint-every", "2", "--watch-every", "2", "--tracking-uri", "none", "--no-eval"]
    return ["edit", "--model", str(MODEL), "--edits", str(edits), "--output", str(out), *settings, *loop, *map(str, more)]


def digests(out: Path) -> dict[str, str]:
    return json.loads((out / "run.json").read_text())["digests_after"]


def ledger(out: Path) -> list[tuple[int, int, str]]:
    rows = [row for part in sorted((out / "ledger").glob("*.parquet")) for row in pq.read_table(part).to_pylist()]
    return [(row["turn"], row["record"], row["outcome"]) for row in rows]


def write_records(path: Path, records: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def with_ids(records: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"id": f"e{i}", "prompt": r["prompt"], "target": r["ans"]} for i, r in enumerate(records)]
