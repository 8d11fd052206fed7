"""The scripts of ``examples/`` run, on a tiny model, and do what their first lines say."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.forked import ForkedRun

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests" / "data" / "parity" / "llama-tiny" / "model"
MODULES, RATE = "model.layers.{1,2}.mlp.{gate,up}_proj", "1e-3"


def run(script: str, *arguments: str, folder: Path) -> str:
    """What a script prints that ends well, from a folder that is not the checkout."""
    process = ForkedRun(["--model", MODEL, *arguments], folder=folder, script=ROOT / "examples" / script)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stdout + stderr
    return stdout


def test_a_model_is_edited_asked_and_restored_from_python(tmp_path: Path) -> None:
    said = run("edit_and_ask.py", "--modules", MODULES, "--learning-rate", "1e-2", "--output", "edited", folder=tmp_path)
    measured = re.search(r"right answer tokens: ([\d.]+) before, ([\d.]+) now", said)
    assert measured, said
    assert float(measured[2]) > float(measured[1])
    assert "undone: True" in said
    assert (tmp_path / "edited" / "config.json").is_file()


def test_a_day_is_appended_to_a_run_and_taken_back(tmp_path: Path) -> None:
    options = ["--option", f"modules={MODULES}", "--option", f"learning-rate={RATE}", "--option", "edits-per-turn=4", "--option", "generate=2"]
    said = run("lifelong_run.py", "--output", "daily", "--each-day", "8", *options, folder=tmp_path)
    metrics = json.loads((tmp_path / "daily" / "metrics.json").read_text())
    assert (metrics["turns"], metrics["edits"]) == (2, 8)  # Monday's alone
    assert "$ ultraedit diff daily 2 4" in said
    assert "$ ultraedit rollback daily --to-turn 2" in said


def test_edits_are_made_of_triples_and_written_within_a_budget(tmp_path: Path) -> None:
    options = ["--option", f"modules={MODULES}", "--option", f"learning-rate={RATE}", "--option", "generate=2"]
    run("edits_from_triples.py", "--output", "out", "--device-memory", "2GiB", *options, folder=tmp_path)
    metrics = json.loads((tmp_path / "out" / "run" / "metrics.json").read_text())
    assert metrics["edits"] > 0
    assert metrics["generalization"] is not None
    assert json.loads((tmp_path / "out" / "run" / "run.json").read_text())["config"]["device_memory"] == "2GiB"


@pytest.mark.thorough
def test_a_script_that_cannot_go_on_ends_in_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "examples" / "edit_and_ask.py"), "--model", "nowhere"]  # started as by a person
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
