"""Tracking of a run in MLflow. It never stops a run: requests are sent by a thread, and an outage causes warnings only.

Requests that failed stay queued, in order, and are tried again with every later request and at the end.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from editing.errors import InputError
from orchestrator.tracking_database import BrokenDatabase, database_of, prepare_database

logger = logging.getLogger("ultraedit")

_MAX_METRICS = 1000  # MLflow's own limits for one batch
_MAX_PARAMS = 100
_MAX_PARAM_LENGTH = 6000
_MAX_NESTED = 10_000
_CLOSE_TIMEOUT = 60.0
"""Seconds that the end of a run waits for a slow tracking server."""

_FAILED_TIMEOUT = 10.0
"""The same for a run that failed or was interrupted, where a person waits."""


class Tracker(Protocol):
    """Receives a run's parameters, metrics and files."""

    def start(self, name: str, params: Mapping[str, Any], *, run_id: str | None = None) -> None:
        """Create a run, or reopen the one with this id."""

    def params(self, params: Mapping[str, Any]) -> None:
        """More parameters, which were not known at the start."""

    def run_id(self, *, wait: bool = True) -> str | None:
        """Id of the tracked run, or ``None``; waits for the first answer."""

    def log(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Metrics at a number of applied edits; ``None`` values are left out."""

    def nested(self, name: str, params: Mapping[str, Any], metrics: Mapping[str, float | None], step: int) -> None:
        """Parameters and metrics of a nested run, which is created when it is first named."""

    def artifact(self, path: Path) -> None:
        """A file or folder."""

    def close(self, status: str) -> None:
        """Send what is queued and end the run as ``FINISHED`` or ``FAILED``."""


class NoTracker:
    """Tracks nothing."""

    def start(self, name: str, params: Mapping[str, Any], *, run_id: str | None = None) -> None: ...
    def params(self, params: Mapping[str, Any]) -> None: ...
    def run_id(self, *, wait: bool = True) -> None: ...
    def log(self, metrics: Mapping[str, float | None], step: int) -> None: ...
    def nested(self, name: str, params: Mapping[str, Any], metrics: Mapping[str, float | None], step: int) -> None: ...
    def artifact(self, path: Path) -> None: ...
    def close(self, status: str) -> None: ...


class MlflowTracker:
    """Sends a run to an MLflow tracking server or database.

    Args:
        uri: Tracking URI.
        experiment: Name of the experiment, made if missing.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = uri
        self._run_id = ""
        self._nested: dict[str, str] = {}
        self._tried = threading.Event()
        self._experiment = experiment
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._waiting: list[Callable[[], None]] = []
        self._down = self._started = self._gave_up = self._is_over = False
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def start(self, name: str, params: Mapping[str, Any], *, run_id: str | None = None) -> None:
        self._started = True
        if run_id is not None:
            self._jobs.put(lambda: self._reopen_run(run_id))
            return
        self._jobs.put(lambda: self._create_run(name, params))

    def params(self, params: Mapping[str, Any]) -> None:
        self._jobs.put(lambda: self._log_params(params))

    def run_id(self, *, wait: bool = True) -> str | None:
        if self._started and wait:
            self._tried.wait(_CLOSE_TIMEOUT)
        return self._run_id or None

    def log(self, metrics: Mapping[str, float | None], step: int) -> None:
        now = int(time.time() * 1000)
        present = _present(metrics)
        self._jobs.put(lambda: self._log(self._run_id, present, step, now))

    def nested(self, name: str, params: Mapping[str, Any], metrics: Mapping[str, float | None], step: int) -> None:
        now = int(time.time() * 1000)
        present = _present(metrics)
        self._jobs.put(lambda: self._log_nested(name, params, present, step, now))

    def artifact(self, path: Path) -> None:
        # sent by the thread, so the caller keeps the file until close
        send = "log_artifacts" if path.is_dir() else "log_artifact"
        self._jobs.put(lambda: getattr(self._client, send)(self._run_id, str(path), *([path.name] if path.is_dir() else [])))

    def close(self, status: str) -> None:
        timeout = _CLOSE_TIMEOUT if status == "FINISHED" else _FAILED_TIMEOUT
        if self._started:
            self._jobs.put(lambda: self._client.set_terminated(self._run_id, status))
        self._jobs.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._is_over = True
            logger.warning("tracking: %s did not accept all requests within %.0f s; it lacks the run's last values", self.uri, timeout)
        elif self._waiting and not self._gave_up:
            logger.warning("tracking: %d requests to %s could not be sent; the results on disk are complete", len(self._waiting), self.uri)

    def _work(self) -> None:
        jobs: list[Callable[[], None] | None] = []
        while None not in jobs:
            jobs = [self._jobs.get()]
            with suppress(queue.Empty):
                while True:  # all that are queued: an outage then costs one attempt, not one for each
                    jobs.append(self._jobs.get_nowait())
            self._waiting += [job for job in jobs if job]
            if not self._gave_up:
                self._send_waiting()
        if self._waiting and not self._gave_up and self._succeeds(self._waiting[-1]):  # it answers: what it refuses must not block the rest
            self._waiting = [job for job in self._waiting[:-1] if not self._succeeds(job)]

    def _send_waiting(self) -> None:
        """Send in order; stop at the first failure and keep the rest for later."""
        while self._waiting and self._succeeds(self._waiting[0]):
            self._waiting.pop(0)
            if self._down:
                self._say("%s answers again", self.uri)
                self._down = False

    def _succeeds(self, job: Callable[[], None]) -> bool:
        try:
            job()
        except BrokenDatabase as error:
            self._say("%s; the run goes on and is not tracked", error)
            self._gave_up = True
            return False
        except Exception as error:  # whatever a client or network raises, the run goes on
            if not self._down:
                self._say("a request to %s failed (%s); the run goes on", self.uri, _reason(error))
            self._down = True
            return False
        finally:
            self._tried.set()
        return True

    def _say(self, text: str, *values: object) -> None:
        if not self._is_over:  # else close has said the last word, and its thread still waits for an answer
            logger.warning(f"tracking: {text}", *values)

    def _create_run(self, name: str, params: Mapping[str, Any]) -> None:
        self._client = self._connect()
        experiment = self._experiment_id()
        if not self._run_id:
            self._run_id = self._client.create_run(experiment, run_name=name).info.run_id
        self._log_params(params)

    def _connect(self) -> Any:
        """A client of a server, or of a local database that is there and can be used."""
        from mlflow import MlflowClient

        database = database_of(self.uri)
        if database is None:
            return MlflowClient(tracking_uri=self.uri)
        prepare_database(database)
        try:
            client = MlflowClient(tracking_uri=self.uri)
            client.search_experiments(max_results=1)
        except Exception as error:  # whatever MLflow, SQLAlchemy or Alembic raise
            if "locked" in str(error):
                raise
            raise BrokenDatabase(database, _reason(error)) from error
        return client

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return str(self._client.create_experiment(self._experiment, artifact_location=_artifact_root(self.uri)))
            except MlflowException:
                found = self._client.get_experiment_by_name(self._experiment)
                if found is None:  # else another run has made it since
                    raise
        return str(found.experiment_id)

    def _log_nested(self, name: str, params: Mapping[str, Any], metrics: Mapping[str, float], step: int, timestamp: int) -> None:
        run_id = self._nested_run(name)
        self._log_params(params, run_id)
        self._log(run_id, metrics, step, timestamp)
        self._client.set_terminated(run_id, "FINISHED")

    def _nested_run(self, name: str) -> str:
        """Id of the nested run of this name: known, found where this run was reopened, or created."""
        if name not in self._nested:
            experiment = self._client.get_run(self._run_id).info.experiment_id
            tags = {"mlflow.parentRunId": self._run_id}
            if not self._nested:
                found = self._client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{self._run_id}'", max_results=_MAX_NESTED)
                self._nested = {run.info.run_name: run.info.run_id for run in found}
            if name not in self._nested:
                self._nested[name] = self._client.create_run(experiment, tags=tags, run_name=name).info.run_id
        return self._nested[name]

    def _log_params(self, params: Mapping[str, Any], run_id: str | None = None) -> None:
        from mlflow.entities import Param

        rows = [Param(key, str(value)[:_MAX_PARAM_LENGTH]) for key, value in params.items()]
        for a in range(0, len(rows), _MAX_PARAMS):
            self._client.log_batch(run_id or self._run_id, params=rows[a : a + _MAX_PARAMS])

    def _reopen_run(self, run_id: str) -> None:
        self._client = self._connect()
        self._client.update_run(run_id, status="RUNNING")
        self._run_id = run_id

    def _log(self, run_id: str, metrics: Mapping[str, float], step: int, timestamp: int) -> None:
        from mlflow.entities import Metric

        rows = [Metric(key, value, timestamp, step) for key, value in metrics.items()]
        for a in range(0, len(rows), _MAX_METRICS):
            self._client.log_batch(run_id, metrics=rows[a : a + _MAX_METRICS])


def _present(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items() if value is not None}


def _reason(error: BaseException) -> str:
    """The operating system's error if one is the cause, else the client's own; one short line."""
    words, cause = str(error), error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            words = str(cause)
        cause = cause.__cause__ or cause.__context__
    return " ".join(words.split())[:200] or type(error).__name__


def make_tracker(uri: str, experiment: str) -> Tracker:
    """The tracker of a URI; ``none`` tracks nothing and needs no MLflow.

    Raises:
        InputError: MLflow is not installed.
    """
    if uri.lower() == "none":
        return NoTracker()
    # a server that is down costs seconds then, not the minutes of MLflow's default retries
    for name, value in {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow  # noqa: F401
    except ImportError:
        raise InputError("tracking_uri: MLflow is not installed; install the extra [tracking] or give --tracking-uri none") from None
    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return MlflowTracker(uri, experiment)


def _artifact_root(uri: str) -> str | None:
    """Beside a local database; a server chooses its own."""
    database = database_of(uri)
    return None if database is None else (database.parent / "mlartifacts").as_uri()
