"""A job on a real cluster of two nodes: sent with ``deploy/submit.sh``, as a person sends it."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import Outcome
from tests.support.loopback_cluster import LoopbackCluster
from tests.support.paths import ROOT
from tests.support.ray_runs import largest_difference

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.distributed,
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems have no 127.0.0.2 of their own"),
]

SUBMIT = ROOT / "deploy" / "submit.sh"


class Person:
    """Who gives ``deploy/submit.sh`` the same command again and again, from a folder with the edits."""

    def __init__(self, cluster: LoopbackCluster, edits: Path, flags: list[str], folder: Path) -> None:
        self.output = folder / "shared" / "run"
        self._folder = folder / "uploaded"
        self._folder.mkdir()
        shutil.copy(edits, self._folder / "edits.json")
        run = ["--replicas", "2", "--edits", "edits.json", "--output", str(self.output), "--resume", "auto"]
        run += ["--resources-per-shard", "cpu=1", "--placement-timeout", "120"]
        self._command = [str(SUBMIT), *flags, *run]
        self._environment = {**cluster.environment, "RAY_ADDRESS": cluster.dashboard, "RAY_AUTH_TOKEN": cluster.token}

    def submit(self, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, *more], env=self._environment, cwd=self._folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )


def _script(arguments: list[str], environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SUBMIT), *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.thorough
def test_a_job_that_crashed_and_was_sent_again_gives_the_weights_of_one_process(
    cluster: LoopbackCluster, llama_tiny: Path, edit_flags: list[str], ultraedit: Callable[..., Outcome], tmp_path: Path
) -> None:
    flags = [*edit_flags, "--no-eval", "--edits-per-turn", "4", "--checkpoint-every", "1"]
    person = Person(cluster, llama_tiny / "edits.json", flags[1:], tmp_path)
    earlier = {actor["job_id"] for actor in cluster.list_states("actors")}

    job = person.submit("--tracking-uri", "sqlite:///mlflow.db")
    _wait_for_a_checkpoint(person.output, job)
    (driver,) = (process for process in cluster.processes_of("/ultraedit edit") if process.pid != job.pid)
    driver.kill()
    log, _ = job.communicate(timeout=180)
    assert job.returncode != 0, log
    assert "Ray deletes the job's own folder when it ends, and with it --tracking-uri sqlite:////" in log
    assert not person.output.exists()

    job = person.submit()
    log, _ = job.communicate(timeout=300)
    assert job.returncode == 0, log
    assert "resum" in log
    assert json.loads((person.output / "metrics.json").read_text())["edits"] == 60
    assert json.loads((person.output / "run.json").read_text())["config"]["replicas"] == 2
    workers = [actor for actor in cluster.list_states("actors") if actor["class_name"] == "RemoteWorker" and actor["job_id"] not in earlier]
    jobs = {actor["job_id"]: {a["node_id"] for a in workers if a["job_id"] == actor["job_id"]} for actor in workers}
    assert [len(nodes) for nodes in jobs.values()] == [2, 2], "a replica on each node, in both jobs"

    alone = ultraedit(*flags, "--edits", llama_tiny / "edits.json", "--output", tmp_path / "alone")
    assert alone.code == 0, alone.stderr
    assert largest_difference(person.output / "model", tmp_path / "alone" / "model") < 1e-5


def _wait_for_a_checkpoint(output: Path, job: subprocess.Popen[str]) -> None:
    """In the folder aside where an unfinished run keeps them."""
    deadline = time.monotonic() + 240
    while not list(output.parent.glob(".*/checkpoints/turn-*")):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.thorough
@pytest.mark.parametrize("token", [None, "f" * 64], ids=["none", "another"])
def test_the_cluster_lets_nobody_in_without_its_token(cluster: LoopbackCluster, token: str | None) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", b'{"entrypoint": "true"}', {"Content-Type": "application/json", **headers})
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=10)
    assert refusal.value.code in (401, 403)


@pytest.mark.thorough
def test_a_wrong_token_ends_the_submission_with_an_error(cluster: LoopbackCluster, tmp_path: Path) -> None:
    environment = {**cluster.environment, "RAY_ADDRESS": cluster.dashboard, "RAY_AUTH_TOKEN": "f" * 64}
    job = _script(["--model", "m", "--output", "/nowhere", "--tracking-uri", "none"], environment, tmp_path)
    assert job.returncode != 0
    assert "token" in (job.stdout + job.stderr).lower()
    assert not Path("/nowhere").exists()


@pytest.mark.parametrize(
    ("environment", "arguments", "reason"),
    [
        ({"RAY_ADDRESS": ""}, [], "RAY_ADDRESS is not set"),
        ({"RAY_ADDRESS": "127.0.0.1:6379"}, [], "jobs are sent to the dashboard"),
        ({"RAY_AUTH_TOKEN": ""}, [], "no token"),
        ({}, ["--output", "runs/one", "--tracking-uri", "none"], "--output runs/one: give an absolute path"),
        ({}, ["--output=runs/one", "--tracking-uri=none"], "--output runs/one: give an absolute path"),
        ({}, ["--output", "/shared/one"], "no --tracking-uri"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_sent(environment: dict[str, str], arguments: list[str], reason: str, tmp_path: Path) -> None:
    given = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "RAY_ADDRESS": "http://127.0.0.1:1", "RAY_AUTH_TOKEN": "f" * 64, **environment}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ray").symlink_to("/bin/false")  # were it asked, nothing would be said
    given["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{given['PATH']}"
    refused = _script(arguments, given, tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert reason in refused.stderr
