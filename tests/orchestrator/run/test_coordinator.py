"""The loop, driven by a small worker without a model."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest
from rich.console import Console

from editing import UltraEditError
from orchestrator.progress import Progress
from orchestrator.run.coordinator import Coordinator
from orchestrator.run.run_config import RunConfig
from orchestrator.tracking import NoTracker
from tests.support.scripted_worker import ScriptedWorker, read_metrics, read_rows, run_scripted


def test_the_last_partial_turn_and_window_are_applied(tmp_path: Path) -> None:
    worker = ScriptedWorker()
    worker.lookahead = 3
    metrics = read_metrics(run_scripted(tmp_path, worker))
    assert worker.windows == [3, 1]
    assert (metrics["edits"], metrics["turns"], metrics["rejected"], metrics["refused"]) == (7, 4, 0, 0)


def test_seconds_add_up_by_phase(tmp_path: Path) -> None:
    seconds = read_metrics(run_scripted(tmp_path, ScriptedWorker()))["seconds"]
    assert (seconds["capture"], seconds["solve"], seconds["apply"]) == (6.0, 1.0, 0.5)


def test_a_refused_turn_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    out = run_scripted(tmp_path, ScriptedWorker(refuse=[2]))
    metrics = read_metrics(out)
    assert (metrics["edits"], metrics["turns"], metrics["refused"]) == (5, 3, 2)
    assert [row["applied"] for row in read_rows(out)] == [True, True, False, False, True, True, True]
    refused = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [(line["record"], line["content"]["prompt"]) for line in refused] == [(3, "p2"), (4, "p3")]


def test_a_run_that_applied_nothing_fails_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UltraEditError, match="no edit was applied"):
        run_scripted(tmp_path, ScriptedWorker(refuse=[1, 2, 3, 4]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["edits.jsonl"]


def test_generated_texts_stand_beside_their_own_edit(tmp_path: Path) -> None:
    out = run_scripted(tmp_path, ScriptedWorker(), generate=3)
    generated = [row for row in read_rows(out) if row["text_after"] is not None]
    assert len(generated) == read_metrics(out)["generated"] == 3
    assert all(row["text_after"] == f" {row['prompt'][-1]}!" and row["efficacy_generated"] for row in generated)


def test_limit_takes_the_first_usable_edits(tmp_path: Path) -> None:
    assert [row["prompt"] for row in read_rows(run_scripted(tmp_path, ScriptedWorker(), limit=3))] == ["p0", "p1", "p2"]


def test_no_eval_still_writes_every_edit(tmp_path: Path) -> None:
    out = run_scripted(tmp_path, ScriptedWorker(), eval=False)
    assert len(read_rows(out)) == 7
    assert read_metrics(out)["efficacy"] is None


def test_a_large_input_starts_without_being_read_and_its_digest_is_in_the_checkpoint(tmp_path: Path) -> None:
    edits = tmp_path / "edits.json"
    edits.write_bytes(b'[{"prompt": "p", "target": "t"}' + b', {"prompt": "p", "target": "t"}' * 600_000)  # and no end
    options = {"model": "m", "edits": str(edits), "output": str(tmp_path / "out"), "edits_per_turn": 2}
    out = Coordinator(RunConfig(**options, limit=4), ScriptedWorker(), NoTracker(), Progress(Console(quiet=True), enabled=False)).run()
    digest = hashlib.sha256(edits.read_bytes()).hexdigest()
    source = {"path": str(edits), "format": "jsonl", "sha256": digest, "limit": 4}
    assert read_metrics(out)["edits"] == 4
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
