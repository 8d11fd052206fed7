"""The loop, driven by a small worker without a model."""

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from editing import TurnRefused, UltraEditError
from editing.model.joining import Joiner
from editing.monitoring.evaluation import EditResult
from editing.monitoring.health import Vitals
from editing.turn import PreparedTurn, TokenizedEdit, Turn, TurnReport
from orchestrator.progress import Progress
from orchestrator.run.coordinator import Coordinator
from orchestrator.run.run_config import RunConfig
from orchestrator.tracking import NoTracker


class Letters:
    """A tokenizer: one token a character."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


class ScriptedWorker:
    """Refuses the turns that it is told to, and notes what it is asked."""

    joiner, max_tokens, lookahead, edits_at_a_time = Joiner(Letters()), 50, 4, 200

    def __init__(self, refuse: Sequence[int] = (), *, growth: float = 0.0, sick_from: float = float("inf")) -> None:
        self.refuse, self.windows, self.seen = set(refuse), [], 0
        self.growth, self.sick_from, self.measured = growth, sick_from, []

    def outlook(self, num_edits: int | None = None) -> list[str]:
        return []

    def load(self) -> None: ...

    def describe(self) -> dict[str, Any]:
        fields = ("architecture", "device", "dtype", "preset")
        return {
            **dict.fromkeys(fields, "x"),
            "parameters": 1,
            "modules": ["m"],
            "learning_rate": 1.0,
            "method": {"subject_modules": [], "join": "raw"},
            "text": [],
            "preserve_text_sha256": "none",
            "float32_masters": False,
        }

    def saved_size(self) -> int:
        return 0

    def digest(self) -> dict[str, str]:
        return {"m": str(self.seen)}

    def prepare(self, turns: Sequence[Turn]) -> list[PreparedTurn]:
        self.windows.append(len(turns))
        return [PreparedTurn(turn, None, 0.5) for turn in turns]

    def apply(self, prepared: PreparedTurn) -> TurnReport:
        self.seen += 1
        if self.seen in self.refuse:
            raise TurnRefused("not finite", (0,))
        n = len(prepared.turn.edits)
        seconds = {"prefix": 0.5, "capture": 1.0, "solve": 0.25, "apply": 0.125, "measure": 9.0}
        return TurnReport(self.seen, n, n, 1.0, 0.0, None, {"m": 2.0}, {"m": self.growth * self.seen}, {"m": 1.0}, seconds)

    def measure_health(self, prepared: PreparedTurn) -> Vitals:
        self.measured.append(self.seen)
        sick = self.seen >= self.sick_from
        return Vitals(1.0, 90.0 if sick else 10.0, 9.0 if sick else 1.0, 0.0 if sick else 1.0, 1.0, None, None, None)

    def evaluate(self, edits: Sequence[TokenizedEdit]) -> list[EditResult]:
        return [EditResult(1.0, None, None, None, 0.0, None, None)] * len(edits)

    def generate(self, prompts: Sequence[str], *, unedited: bool = False) -> list[str]:
        return [" old" if unedited else f" {p[-1]}!" for p in prompts]

    def save(self, folder: Path) -> None:
        folder.mkdir()

    def fingerprint(self) -> str:
        return "base"

    def save_state(self, path: Path) -> None:
        path.write_text(str(self.seen))

    def load_state(self, path: Path, watch: dict[str, Any] | None) -> None:
        self.seen = int(path.read_text())

    def watch_state(self) -> dict[str, Any]:
        return {}


def run(tmp_path: Path, worker: ScriptedWorker, count: int = 7, **options: Any) -> Path:
    edits = tmp_path / "edits.jsonl"
    edits.write_text("\n".join(json.dumps({"prompt": f"p{i}", "target": str(i)}) for i in range(count)))
    config = RunConfig(model="m", edits=str(edits), output=str(tmp_path / "out"), edits_per_turn=2, **options)
    return Coordinator(config, worker, NoTracker(), Progress(Console(quiet=True), enabled=False)).run()


def read(path: Path) -> dict[str, Any]:
    return json.loads((path / "metrics.json").read_text())


def rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(path / "edits.parquet").to_pylist()


def test_the_last_partial_turn_and_window_are_applied(tmp_path: Path) -> None:
    worker = ScriptedWorker()
    worker.lookahead = 3
    metrics = read(run(tmp_path, worker))
    assert worker.windows == [3, 1]
    assert (metrics["edits"], metrics["turns"], metrics["rejected"], metrics["refused"]) == (7, 4, 0, 0)


def test_seconds_add_up_by_phase(tmp_path: Path) -> None:
    seconds = read(run(tmp_path, ScriptedWorker()))["seconds"]
    assert (seconds["capture"], seconds["solve"], seconds["apply"]) == (6.0, 1.0, 0.5)


def test_a_refused_turn_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    out = run(tmp_path, ScriptedWorker(refuse=[2]))
    metrics = read(out)
    assert (metrics["edits"], metrics["turns"], metrics["refused"]) == (5, 3, 2)
    assert [row["applied"] for row in rows(out)] == [True, True, False, False, True, True, True]
    refused = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [(line["record"], line["content"]["prompt"]) for line in refused] == [(3, "p2"), (4, "p3")]


def test_a_run_that_applied_nothing_fails_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UltraEditError, match="no edit was applied"):
        run(tmp_path, ScriptedWorker(refuse=[1, 2, 3, 4]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["edits.jsonl"]


def test_generated_texts_stand_beside_their_own_edit(tmp_path: Path) -> None:
    out = run(tmp_path, ScriptedWorker(), generate=3)
    generated = [row for row in rows(out) if row["text_after"] is not None]
    assert len(generated) == read(out)["generated"] == 3
    assert all(row["text_after"] == f" {row['prompt'][-1]}!" and row["efficacy_generated"] for row in generated)


def test_limit_takes_the_first_usable_edits(tmp_path: Path) -> None:
    assert [row["prompt"] for row in rows(run(tmp_path, ScriptedWorker(), limit=3))] == ["p0", "p1", "p2"]


def test_no_eval_still_writes_every_edit(tmp_path: Path) -> None:
    out = run(tmp_path, ScriptedWorker(), eval=False)
    assert len(rows(out)) == 7
    assert read(out)["efficacy"] is None


def test_a_large_input_starts_without_being_read_and_its_digest_is_in_the_checkpoint(tmp_path: Path) -> None:
    edits = tmp_path / "edits.json"
    edits.write_bytes(b'[{"prompt": "p", "target": "t"}' + b', {"prompt": "p", "target": "t"}' * 600_000)  # and no end
    options = {"model": "m", "edits": str(edits), "output": str(tmp_path / "out"), "edits_per_turn": 2}
    out = Coordinator(RunConfig(**options, limit=4), ScriptedWorker(), NoTracker(), Progress(Console(quiet=True), enabled=False)).run()
    digest = hashlib.sha256(edits.read_bytes()).hexdigest()
    source = {"path": str(edits), "format": "jsonl", "sha256": digest, "limit": 4}
    assert read(out)["edits"] == 4
    assert json.loads((out / "run.json").read_text())["input"] == source
    (checkpoint,) = (out / "checkpoints").glob("turn-*")
    assert json.loads((checkpoint / "manifest.json").read_text())["state"]["source"] == source


def test_a_large_input_without_a_usable_edit_fails_at_its_end_and_writes_nothing(tmp_path: Path) -> None:
    edits = tmp_path / "edits.jsonl.gz"
    edits.write_bytes(gzip.compress(b'{"prompt": "p", "target": ""}\n' * 1500))
    config = RunConfig(model="m", edits=str(edits), output=str(tmp_path / "out"))
    with pytest.raises(UltraEditError, match=r"no edit was applied: 1500 records were rejected, .* because target: "):
        Coordinator(config, ScriptedWorker(), NoTracker(), Progress(Console(quiet=True), enabled=False)).run()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["edits.jsonl.gz"]
