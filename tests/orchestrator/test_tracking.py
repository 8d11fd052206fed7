"""MLflow gets everything when it is there, and costs a run nothing but warnings when it is not."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from editing import InputError, TurnReport
from editing.turn import PreparedTurn
from orchestrator import tracking
from orchestrator.tracking import MlflowTracker, NoTracker, make_tracker
from tests.support.command_line import FinishedRun, Outcome
from tests.support.ports import free_ports
from tests.support.quiet_server import QuietServer
from workers.worker import LocalWorker

pytest.importorskip("mlflow")
from mlflow import MlflowClient

ARTIFACTS = {"run.json", "metrics.json", "edits.parquet", "rejected.jsonl", "turns.jsonl", "plots"}
Ultraedit = Callable[..., Outcome]


class Server:
    """As much of an MLflow server as a run needs, over HTTP, that can be told to answer 500 or to take its time."""

    def __init__(self, artifacts: str) -> None:
        self.down = False
        self.has_refused = threading.Event()
        self.seconds = 0.0
        self.metrics: list[tuple[str, float, int]] = []
        self.params: dict[str, str] = {}
        self.batches: list[int] = []
        self.status = "RUNNING"
        self._artifacts = artifacts
        self._http = QuietServer(("127.0.0.1", 0), self._handler())
        self.uri = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: dict[str, Any]) -> None:
                time.sleep(server.seconds)
                code, answer = (500, {}) if server.down else server._reply(self.path.partition("mlflow/")[2].partition("?")[0], body)
                data = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                if code == 500:
                    server.has_refused.set()

            def log_message(self, *_: object) -> None: ...

        return Handler

    def _reply(self, call: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        info = {"run_id": "r1", "run_uuid": "r1", "experiment_id": "1", "status": self.status, "artifact_uri": self._artifacts, "start_time": 1}
        run = {"info": info, "data": {}}
        if call == "runs/log-batch":
            batch = [len(body.get(name, [])) for name in ("metrics", "params")]
            if batch[0] > 1000 or batch[1] > 100 or any(len(p["value"]) > 6000 for p in body.get("params", [])):
                return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "over the limits"}
            self.metrics += [(m["key"], m["value"], int(m["step"])) for m in body.get("metrics", [])]
            self.params |= {p["key"]: p["value"] for p in body.get("params", [])}
            return 200, {}
        if call == "runs/update":
            self.status = body["status"]
            return 200, {"run_info": info}
        replies = {"experiments/create": {"experiment_id": "1"}, "runs/create": {"run": run}, "runs/get": {"run": run}}
        return (200, replies[call]) if call in replies else (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"})


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = Server((tmp_path / "artifacts").as_uri())
    yield server
    server.close()


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, logger="ultraedit")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "ultraedit"]


@contextmanager
def after_turn(number: int, action: Callable[[], object]) -> Iterator[None]:
    """Let something happen after a run's n-th turn."""
    turns: list[int] = []
    apply = LocalWorker.apply

    def applied(self: LocalWorker, prepared: PreparedTurn) -> TurnReport:
        report = apply(self, prepared)
        turns.append(1)
        if len(turns) == number:
            action()
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalWorker, "apply", applied)
        yield


# --- a database


def test_a_run_is_in_the_database_with_parameters_metrics_and_files(finished_run: FinishedRun) -> None:
    client = MlflowClient(finished_run.tracking_uri)
    run_id = json.loads((finished_run.path / "run.json").read_text())["mlflow_run_id"]
    run = client.get_run(run_id)
    assert client.get_experiment(run.info.experiment_id).name == "ultraedit"
    assert (run.info.status, run.info.run_name) == ("FINISHED", "out")
    assert run.data.params["edits_per_turn"] == "20"
    assert run.data.params["learning_rate"] == "0.001"
    assert run.data.params["modules"].startswith("model.layers.1.mlp.gate_proj, ")
    turns = [json.loads(line) for line in (finished_run.path / "turns.jsonl").read_text().splitlines()]
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "loss")] == [(20 * t["turn"], t["loss"]) for t in turns]
    assert [m.step for m in client.get_metric_history(run_id, "watch_efficacy")] == [20, 40, 60]
    assert [m.step for m in client.get_metric_history(run_id, "shift_norm.model.layers.2.mlp.up_proj")] == [20, 40, 60]
    metrics = json.loads((finished_run.path / "metrics.json").read_text())
    (final,) = client.get_metric_history(run_id, "final_efficacy")
    assert (final.step, final.value) == (60, metrics["efficacy"])


def test_the_artifacts_are_really_there(finished_run: FinishedRun, tmp_path: Path) -> None:
    client = MlflowClient(finished_run.tracking_uri)
    run_id = json.loads((finished_run.path / "run.json").read_text())["mlflow_run_id"]
    assert {file.path for file in client.list_artifacts(run_id)} == ARTIFACTS
    stored = Path(client.download_artifacts(run_id, "", str(tmp_path)))
    for name in ("run.json", "metrics.json", "edits.parquet", "rejected.jsonl", "turns.jsonl", "plots/run.png"):
        assert (stored / name).read_bytes() == (finished_run.path / name).read_bytes()


def test_the_end_of_a_run_says_where_it_is_tracked(finished_run: FinishedRun) -> None:
    run_id = json.loads((finished_run.path / "run.json").read_text())["mlflow_run_id"]
    assert f"run {run_id[:8]}" in finished_run.outcome.stdout
    assert "tracking:" not in finished_run.outcome.stderr


def test_a_run_that_fails_is_tracked_as_failed(
    finished_run: FinishedRun, tmp_path: Path, llama_tiny: Path, edit_flags: list[str], ultraedit: Ultraedit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise InputError("the disk went away")

    monkeypatch.setattr(LocalWorker, "save", broken)
    flags = ["--tracking-uri", finished_run.tracking_uri, "--experiment", "fails", "--edits", llama_tiny / "edits.json", "--output", tmp_path / "out"]
    outcome = ultraedit(*edit_flags, *flags)
    assert outcome.errors == ["error: the disk went away"]
    assert "tracking" not in outcome.stderr
    client = MlflowClient(finished_run.tracking_uri)
    experiment = client.get_experiment_by_name("fails")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]


def test_a_run_refused_before_it_began_is_not_tracked_nor_warned_about(
    tmp_path: Path, llama_tiny: Path, edit_flags: list[str], ultraedit: Ultraedit
) -> None:
    flags = ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", "--edits", llama_tiny / "edits.json", "--output", tmp_path / "out"]
    outcome = ultraedit(*edit_flags, *flags, "--modules", "lm_head")
    assert outcome.stderr.splitlines() == outcome.errors
    assert list(tmp_path.iterdir()) == []


# --- outages


def test_a_server_that_is_not_there_costs_two_warnings_and_no_time(
    tmp_path: Path, llama_tiny: Path, edit_flags: list[str], ultraedit: Ultraedit
) -> None:
    began = time.monotonic()
    flags = ["--tracking-uri", "http://127.0.0.1:9", "--edits", llama_tiny / "edits.json", "--output", tmp_path / "out", "--no-eval"]
    outcome = ultraedit(*edit_flags, *flags)
    assert outcome.code == 0
    first, last = [line for line in outcome.stderr.splitlines() if line.startswith("tracking:")]
    assert first == "tracking: a request to http://127.0.0.1:9 failed ([Errno 111] Connection refused); the run goes on"
    assert "could not be sent" in last
    assert json.loads((tmp_path / "out" / "run.json").read_text())["mlflow_run_id"] is None
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["edits"] == 60
    assert time.monotonic() - began < 90


def test_a_server_that_dies_after_the_first_turn_does_not_stop_the_run(
    server: Server, tmp_path: Path, llama_tiny: Path, edit_flags: list[str], ultraedit: Ultraedit
) -> None:
    def die() -> None:
        deadline = time.monotonic() + 120
        while not server.params and time.monotonic() < deadline:  # let it see the run's beginning first
            time.sleep(0.01)
        server.down = True

    flags = ["--tracking-uri", server.uri, "--edits", llama_tiny / "edits.json", "--output", tmp_path / "out", "--no-eval"]
    with after_turn(1, die):
        outcome = ultraedit(*edit_flags, *flags)
    assert outcome.code == 0
    assert len([line for line in outcome.stderr.splitlines() if "the run goes on" in line]) == 1
    assert "could not be sent" in outcome.stderr
    assert server.status == "RUNNING"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["mlflow_run_id"] == "r1"
    assert (tmp_path / "out" / "model" / "model-00001-of-00002.safetensors").is_file()


def test_what_an_outage_held_back_arrives_in_order_when_the_server_answers_again(
    server: Server, tmp_path: Path, llama_tiny: Path, edit_flags: list[str], ultraedit: Ultraedit
) -> None:
    server.down = True

    def wake() -> None:
        assert server.has_refused.wait(120)
        server.down = False

    flags = ["--tracking-uri", server.uri, "--edits", llama_tiny / "edits.json", "--output", tmp_path / "out", "--no-eval"]
    with after_turn(3, wake):
        outcome = ultraedit(*edit_flags, *flags)
    assert outcome.code == 0
    assert "answers again" in outcome.stderr
    assert "could not be sent" not in outcome.stderr
    assert [step for name, _, step in server.metrics if name == "loss"] == [20, 40, 60]
    assert server.status == "FINISHED"
    assert {p.name for p in (tmp_path / "artifacts").iterdir()} == ARTIFACTS


def test_one_request_that_is_refused_does_not_block_the_others(server: Server, tmp_path: Path, warnings: Callable[[], list[str]]) -> None:
    tracker = MlflowTracker(server.uri, "x")
    tracker.start("run", {})
    tracker.artifact(tmp_path / "not-there.json")
    tracker.log({"loss": 1.0}, step=1)
    tracker.close("FINISHED")
    assert server.metrics == [("loss", 1.0, 1)]
    assert server.status == "FINISHED"
    assert "1 requests" in warnings()[-1]


def _refused() -> None:
    raise ConnectionError("refused")


def test_a_server_that_does_not_answer_is_waited_for_no_longer_than_the_timeout(
    server: Server, warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_CLOSE_TIMEOUT", 0.2)
    server.seconds = 20.0
    tracker = MlflowTracker(server.uri, "x")
    tracker.start("run", {})
    began = time.monotonic()
    assert tracker.run_id() is None
    tracker.close("FINISHED")
    assert time.monotonic() - began < 15
    assert "within 0 s" in warnings()[-1]
    said = len(warnings())
    assert not tracker._succeeds(_refused)  # as its request does in the end; the run that it could say it in is over
    assert len(warnings()) == said


def test_a_tracker_that_was_never_started_ends_without_a_word(warnings: Callable[[], list[str]]) -> None:
    tracker = MlflowTracker("http://127.0.0.1:9", "x")
    assert tracker.run_id() is None
    tracker.close("FAILED")
    assert warnings() == []


def test_an_error_without_a_word_is_a_warning_too(warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> None:
        raise ValueError

    monkeypatch.setattr("mlflow.MlflowClient", silent)
    tracker = MlflowTracker("http://127.0.0.1:9", "x")
    tracker.start("run", {})
    assert tracker.run_id() is None
    tracker.close("FAILED")
    assert warnings()[0] == "tracking: a request to http://127.0.0.1:9 failed (ValueError); the run goes on"


def test_requests_stay_within_the_limits_of_mlflow(server: Server, warnings: Callable[[], list[str]]) -> None:
    tracker = MlflowTracker(server.uri, "x")
    tracker.start("run", {**{f"p{i}": i for i in range(249)}, "long": "x" * 10_000})
    tracker.log({**{f"m{i}": float(i) for i in range(2500)}, "absent": None}, step=7)
    tracker.close("FINISHED")
    assert warnings() == []
    assert len(server.params) == 250
    assert len(server.params["long"]) == 6000
    assert server.metrics == [(f"m{i}", float(i), 7) for i in range(2500)]


@pytest.mark.slow
def test_a_real_server_killed_after_the_first_turn_does_not_stop_the_run(
    tmp_path: Path, llama_tiny: Path, edit_flags: list[str], ultraedit: Ultraedit
) -> None:
    (port,) = free_ports(1)
    where = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "mlflow", "server", *where], cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health")
        flags = ["--tracking-uri", f"http://127.0.0.1:{port}", "--edits", llama_tiny / "edits.json", "--output", tmp_path / "out", "--no-eval"]
        with after_turn(2, lambda: os.killpg(process.pid, 9)):
            began = time.monotonic()
            outcome = ultraedit(*edit_flags, *flags)
        assert time.monotonic() - began < 60
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
        process.wait()
    assert outcome.code == 0
    assert "the run goes on" in outcome.stderr
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["edits"] == 60


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.5)


# --- no MLflow


def test_tracking_uri_none_needs_no_mlflow(
    tmp_path: Path, llama_tiny: Path, edit_flags: list[str], ultraedit: Ultraedit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    flags = ["--edits", llama_tiny / "edits.json", "--output", tmp_path / "out", "--no-eval", "--tracking-uri", "None"]
    outcome = ultraedit(*edit_flags, *flags)
    assert outcome.code == 0, outcome.stderr
    assert (tmp_path / "out" / "run.json").is_file()


def test_without_mlflow_a_tracked_run_is_refused_and_told_what_to_do(
    tmp_path: Path, llama_tiny: Path, edit_flags: list[str], ultraedit: Ultraedit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    flags = ["--edits", llama_tiny / "edits.json", "--output", tmp_path / "out", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    outcome = ultraedit(*edit_flags, *flags)
    assert outcome.code == 1
    assert "[tracking]" in outcome.errors[0]
    assert "--tracking-uri none" in outcome.errors[0]
    assert list(tmp_path.iterdir()) == []


def test_none_in_any_case_tracks_nothing() -> None:
    assert isinstance(make_tracker("NONE", "x"), NoTracker)
    assert NoTracker().run_id() is None
