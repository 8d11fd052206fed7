"""Who works for a run, and what a person is told before it begins."""

import logging
import sys

import pytest

from editing import InputError
from orchestrator.run.run_config import RunConfig
from orchestrator.run.topology import make_worker, warn_of_what_a_job_loses


def config(output: str = "/shared/out", tracking_uri: str = "none", **more: int) -> RunConfig:
    return RunConfig(model="m", edits="e", output=output, tracking_uri=tracking_uri, **more)


@pytest.mark.parametrize(
    ("output", "uri", "named"),
    [
        ("runs/one", "none", ["--output runs/one"]),
        ("/shared/out", "sqlite:///mlflow.db", ["--tracking-uri sqlite:///mlflow.db"]),
        ("runs/one", "sqlite:///runs/mlflow.db", ["--output runs/one", "--tracking-uri sqlite:///runs/mlflow.db"]),
        ("/shared/out", "sqlite:////shared/mlflow.db", []),
        ("/shared/out", "http://server:5000", []),
    ],
)
@pytest.mark.parametrize("is_job", [True, False])
def test_a_job_says_which_results_it_would_lose(
    is_job: bool, output: str, uri: str, named: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("ultraedit")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "handlers", [])  # another test's, which would note each line a second time
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    if is_job:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    warn_of_what_a_job_loses(config(output, uri))
    assert len(caplog.messages) == (1 if is_job and named else 0)
    assert all(name in message for message in caplog.messages for name in named)


@pytest.mark.parametrize(("missing", "more"), [("ray", {"replicas": 2}), ("deepspeed", {"shards": 2})])
def test_what_is_not_installed_is_told_before_anything_starts(missing: str, more: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setitem(sys.modules, missing, None)  # as Python itself marks a module that cannot be imported
    with pytest.raises(InputError, match=rf"{missing} is not installed; install the extra \[distributed\]"):
        make_worker(config(**more))


def test_replicas_need_no_deepspeed_and_start_where_ray_was_imported_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    make_worker(config(replicas=2)).close()
