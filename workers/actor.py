"""A Ray actor: a worker, and the turns that it has prepared.

Its methods are the verbs of :class:`workers.protocol.Worker`, but a prepared turn is named by its place in the window.
"""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from editing import InputError, TurnReport, UltraEditError
from editing.messages import Asked
from editing.model.generation import Written
from editing.monitoring.evaluation import Answers, EditResult, Predictions
from editing.monitoring.health import Vitals
from editing.turn import PreparedTurn, TokenizedEdit, Turn
from workers.process_groups import Placement
from workers.protocol import Worker, WorkerSpec
from workers.worker import LocalWorker


class RemoteWorker:
    """A worker in its own process, on any node. Hidden states of the prepared turns stay there."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._window: list[PreparedTurn | None] = []

    def rendezvous(self) -> tuple[str, int, bool]:
        """This node's address, a free port on it, and whether the model's folder is visible on it."""
        address = ray.util.get_node_ip_address()
        with socket.socket() as listener:
            listener.bind((address, 0))
            return address, int(listener.getsockname()[1]), Path(self._spec.model).exists()

    def load(self, placement: Placement, num_threads: int | None) -> dict[str, Any]:
        """Load this shard; returns what the group has to know about the model, on world rank 0."""
        if num_threads:
            torch.set_num_threads(num_threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.worker: Worker = LocalWorker(self._spec, placement)
        self.worker.load()
        if placement.world_rank:
            return {}
        model = {"joiner": self.worker.joiner, "max_tokens": self.worker.max_tokens}
        return {"described": self.worker.describe(), "saved_size": self.worker.saved_size(), **model}

    def prepare(self, turns: Sequence[Turn]) -> list[float]:
        self._window = list(self.worker.prepare(turns))
        return [prepared.prefix_seconds for prepared in self._window if prepared]

    def apply(self, index: int) -> TurnReport:
        """Apply a prepared turn, and free the one before it."""
        if index:
            self._window[index - 1] = None
        return self.worker.apply(self._prepared(index))

    def observe(self, index: int) -> None:
        self.worker.observe(self._prepared(index))

    def measure_health(self, index: int) -> Vitals:
        return self.worker.measure_health(self._prepared(index))

    def evaluate(self, edits: Sequence[TokenizedEdit], known: Sequence[Answers | None] | None) -> tuple[list[EditResult], Predictions]:
        return self.worker.evaluate(edits, known)

    def write(self, prompts: Sequence[Asked], framing: str, unedited: bool, max_new_tokens: int) -> list[Written]:
        return self.worker.write(prompts, framing=framing, unedited=unedited, max_new_tokens=max_new_tokens)

    def perplexities(self, passages: Sequence[str], known: float | None) -> tuple[float, float]:
        return self.worker.perplexities(passages, known)

    def digest(self) -> dict[str, str]:
        return self.worker.digest()

    def fingerprint(self) -> str:
        return self.worker.fingerprint()

    def save_state(self, path: Path) -> None:
        _check_shared(path.parent)
        self.worker.save_state(path)

    def load_state(self, path: Path, watch: dict[str, Any] | None) -> None:
        _check_shared(path.parent)
        self.worker.load_state(path, watch)

    def watch_state(self) -> dict[str, Any]:
        return self.worker.watch_state()

    def save(self, folder: Path) -> None:
        _check_shared(folder.parent)
        self.worker.save(folder)

    def _prepared(self, index: int) -> PreparedTurn:
        prepared = self._window[index]
        if prepared is None:
            raise UltraEditError(f"turn {index + 1} of the window was applied before; a turn can be applied only once")
        return prepared


def _check_shared(folder: Path) -> None:
    """The run's folder must be visible on this node too.

    Raises:
        InputError: It is not.
    """
    if not folder.is_dir():
        node = ray.util.get_node_ip_address()
        raise InputError(f"{folder}: is not visible on node {node}; put --output on storage that all nodes share, under the same path on each")
