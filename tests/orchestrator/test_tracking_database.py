"""A local tracking database is made whole, whoever starts together or is killed meanwhile; a broken one is named with what to do."""

import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.tracking import make_tracker
from tests.support.command_line import Outcome

pytest.importorskip("mlflow")
from mlflow import MlflowClient

ROOT = Path(__file__).parents[2]
TRACKED = """
import logging, sys, time
from pathlib import Path
import mlflow
from orchestrator.tracking import make_tracker

logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
uri, name, ready, go = sys.argv[1:]
Path(ready).touch()
while not Path(go).exists():
    time.sleep(0.001)
tracker = make_tracker(uri, "together")
tracker.start(name, {"seed": 1})
tracker.log({"loss": 0.5}, step=1)
tracker.close("FINISHED")
print(tracker.run_id())
"""


def start(folder: Path, name: str) -> "subprocess.Popen[str]":
    """A process that tracks a run as soon as ``folder/go`` is there."""
    arguments = [f"sqlite:///{folder}/mlflow.db", name, str(folder / f"{name}.ready"), str(folder / "go")]
    command = [sys.executable, "-c", TRACKED, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good one, to be copied."""
    path = tmp_path_factory.mktemp("good") / "mlflow.db"
    tracker = make_tracker(f"sqlite:///{path}", "before")
    tracker.start("first", {})
    tracker.close("FINISHED")
    return path


@pytest.mark.thorough
@pytest.mark.parametrize("before", ["nothing", "an empty file"])
def test_three_runs_that_start_together_on_a_new_database_are_all_in_it(before: str, tmp_path: Path) -> None:
    if before == "an empty file":
        (tmp_path / "mlflow.db").touch()
    runs = {name: start(tmp_path, name) for name in ("a", "b", "c")}
    wait_for(lambda: len(list(tmp_path.glob("*.ready"))) == 3)
    (tmp_path / "go").touch()
    told = {name: process.communicate(timeout=300) for name, process in runs.items()}
    assert {name: stderr for name, (_, stderr) in told.items()} == dict.fromkeys(runs, "")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("together")
    assert experiment is not None
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.run_id for name, run in found.items()} == {name: stdout.strip() for name, (stdout, _) in told.items()}
    assert {(run.info.status, run.data.metrics["loss"]) for run in found.values()} == {("FINISHED", 0.5)}
    assert sorted(p.name for p in tmp_path.iterdir() if p.name not in ("mlartifacts", "go") and p.suffix != ".ready") == ["mlflow.db"]


@pytest.mark.thorough
def test_a_process_killed_while_it_makes_the_database_leaves_no_broken_one(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    killed = start(tmp_path, "killed")
    partial = tmp_path / ".mlflow.db.partial"
    wait_for(lambda: partial.exists() and partial.stat().st_size > 0)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "mlflow.db").exists(), "it was too late to be killed on the way"
    stdout, stderr = start(tmp_path, "next").communicate(timeout=300)
    assert stderr == ""
    assert MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(stdout.strip()).info.status == "FINISHED"
    assert not partial.exists()


def break_it(path: Path, how: str, good: Path) -> None:
    shutil.copyfile(good, path)
    if how == "text":
        path.write_text("this is no database\n" * 100)
    elif how == "truncated":
        path.write_bytes(good.read_bytes()[:20_000])
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    else:
        changes = {"half made": "drop table experiment_tags", "another version": "update alembic_version set version_num = 'abc'"}
        with sqlite3.connect(path) as connection:
            connection.execute(changes[how])
        connection.close()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("text", "file is not a database"),
        ("truncated", "malformed"),
        ("a folder", "it is a folder"),
        ("half made", "experiment_tags"),
        ("another version", "upgrade it with 'mlflow db upgrade'"),
    ],
)
def test_a_broken_database_is_one_line_with_what_to_do_and_the_run_goes_on(
    how: str, says: str, database: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mlflow.db"
    break_it(path, how, database)
    caplog.set_level(logging.WARNING, logger="ultraedit")
    began = time.monotonic()
    tracker = make_tracker(f"sqlite:///{path}", "x")
    tracker.start("run", {})
    assert tracker.run_id() is None
    tracker.log({"loss": 1.0}, step=1)
    tracker.close("FINISHED")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "ultraedit"]
    assert line.startswith(f"tracking: {path} is no database that this version of MLflow can use (")
    assert line.endswith("move it away, or give another --tracking-uri; the run goes on and is not tracked") or "restore it from a backup" in line
    assert says in line
    assert len(line) < 500
    assert time.monotonic() - began < 60


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="ultraedit")
    tracker = make_tracker(f"sqlite:///{tmp_path}/none/mlflow.db", "x")
    tracker.start("run", {})
    tracker.close("FINISHED")
    first = next(record.getMessage() for record in caplog.records if record.name == "ultraedit")
    assert "No such file or directory" in first
    assert f"{tmp_path}/none" in first


def test_a_run_with_a_broken_database_is_complete(tmp_path: Path, llama_tiny: Path, edit_flags: list[str], ultraedit: Callable[..., Outcome]) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database\n")
    flags = ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", "--edits", llama_tiny / "edits.json", "--output", tmp_path / "out", "--no-eval"]
    outcome = ultraedit(*edit_flags, *flags)
    assert outcome.code == 0
    assert [line for line in outcome.stderr.splitlines() if line.startswith("tracking:")] == [
        f"tracking: {tmp_path / 'mlflow.db'} is no database that this version of MLflow can use (file is not a database): "
        "move it away, or restore it from a backup, or give another --tracking-uri; the run goes on and is not tracked"
    ]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["edits"] == 60
