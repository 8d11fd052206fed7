"""``ultraedit serve`` in a process of its own, over a tiny model that a few edits hold in."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from orchestrator.service.client import Client, Edit
from tests.support.processes import COMMAND, environment
from tests.support.tiny_runs import MODEL, RECORDS

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
LENIENT = {"retention": 0, "perplexity": 1e9, "weight_growth": 1e3, "old_efficacy_drop": 1.0, "edit_efficacy": 0.3, "efficacy": 0.3}
# a single fact as a first turn blows up at three times this rate (fact 1 does)
RUN = {"modules": "model.layers.{1,2}.mlp.{gate,up}_proj", "learning_rate": 0.003, "passes": 5, "margin": 0.5, "framings": "raw"}
SETTINGS: dict[str, Any] = {"turn_edits": 6, "turn_seconds": 0.5, "gates": LENIENT, "run": RUN, "name": "tiny", "port": 0, "writer_threads": 1}


def fact(number: int, **more: Any) -> Edit:
    """One of the facts that the tiny model takes."""
    record = RECORDS[number % len(RECORDS)]
    return Edit(**{"prompt": record["prompt"], "target": record["ans"], **more})


def write_model(folder: Path) -> Path:
    """The tiny model with a chat template."""
    shutil.copytree(MODEL, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    return folder


class LiveService:
    """A service, started and ended by this process.

    Args:
        folder: Where its state, its configuration and its log go.
        model: The model.
        token: The token, where the folder has a service already.
        **settings: Of its configuration, over :data:`SETTINGS`.
    """

    def __init__(self, folder: Path, model: Path = MODEL, token: str = "", **settings: Any) -> None:
        self.folder, self.state, self.token = folder, folder / "state", token
        self._config = folder / "serve.yaml"
        self._config.write_text(yaml.safe_dump({**SETTINGS, "model": str(model), "state": str(self.state), **settings}))
        self.address = ""
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._log = (self.folder / "log").open("a")
        self.process = subprocess.Popen(
            [*COMMAND, "serve", "--config", str(self._config)], stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment(NO_COLOR="1")
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("token: "):
                self.token = line.split()[1]
            if line.startswith("listening: "):
                self.address = line.split()[1]
            if line.startswith("console: "):
                return
        raise AssertionError(f"the service did not start:\n{self.log()}")

    def client(self, token: str | None = None) -> Client:
        return Client(self.address, token or self.token)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def writer(self) -> psutil.Process | None:
        """The writer's process."""
        for child in psutil.Process(self.process.pid).children():
            if any("service.writer" in word for word in child.cmdline()):
                return child
        return None

    def shards(self) -> list[psutil.Process]:
        """The processes that hold a shard of the model."""
        writer = self.writer()
        return [p for p in writer.children(recursive=True) if "ray::RemoteWorker" in " ".join(p.cmdline())] if writer is not None else []

    def wait(self, true: Callable[[Client], Any], seconds: float = 120) -> Any:
        """What a condition gives once it is true."""
        deadline = time.monotonic() + seconds
        with self.client() as client:
            while not (found := true(client)):
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.1)
        return found

    def settled(self, seconds: float = 120) -> dict[str, int]:
        """Edits by state, once none waits."""

        def look(client: Client) -> dict[str, int] | None:
            status = client.status()
            return None if status["queue"] or status["version"] is None else status["edits"]

        found: dict[str, int] = self.wait(look, seconds)
        return {state: count for state, count in found.items() if count}

    def kill(self) -> None:
        """End the API's process at once; the writer notices."""
        self.process.kill()
        self.process.wait()
        self._close()

    def stop(self) -> int:
        """End it as a person does. Returns its exit code."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGINT)
        code = self.process.wait(60)
        self._close()
        return code

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()
