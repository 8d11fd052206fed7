"""Runs on Ray whose workers end, or are ended, at chosen moments of a turn.

:func:`arm` writes the faults into a folder and :func:`make_faulty` is called in the process of the run. Each fault strikes
once, however often the run is started again.
"""

import json
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from workers.actor import RemoteWorker
from workers.process_groups import Placement

PHASES = ("prefix", "capture", "solve", "apply", "measure", "checkpoint")
MAKE_FAULTY = ("tests.support.faulty_run:make_faulty",)
"""What is called in the process of the run before its command line."""

_VARIABLE = "ULTRAEDIT_FAULTS"


@dataclass(frozen=True)
class Fault:
    """Who is killed, and when.

    Attributes:
        phase: One of :data:`PHASES`.
        turn: The first turn at which it strikes, from 1.
        rank: World rank of the worker that gets there.
        victim: That ``worker``, its whole ``replica``, or the ``coordinator``; or its ``memory``, of which it gets no more.
    """

    phase: str
    turn: int
    rank: int
    victim: str = "worker"


def arm(folder: Path, faults: list[Fault]) -> dict[str, str]:
    """Write the faults down; what the run's environment needs."""
    folder.mkdir()
    (folder / "faults.json").write_text(json.dumps([asdict(fault) for fault in faults]))
    return {_VARIABLE: str(folder)}


def struck(folder: Path) -> int:
    """How many of them struck."""
    return len(list(folder.glob("*.struck")))


class FaultyWorker(RemoteWorker):
    """A worker that gets to the phases of a turn as any other, and may not survive it."""

    def load(self, placement: Placement, num_threads: int | None) -> dict[str, Any]:
        known = super().load(placement, num_threads)
        self._folder, self._placement = Path(os.environ[_VARIABLE]), placement
        (self._folder / f"{placement.world_rank}.pid").write_text(str(os.getpid()))
        self._faults = [Fault(**fault) for fault in json.loads((self._folder / "faults.json").read_text())]
        editor = self.worker.editor
        places = {"prefix": (editor, "run_prefix"), "capture": (editor, "capture"), "solve": (editor, "_passes"), "apply": (editor, "_commit")}
        places |= {"measure": (self.worker, "measure_health"), "checkpoint": (self.worker, "save_state")}
        for phase, (owner, name) in places.items():
            setattr(owner, name, self._watched(phase, getattr(owner, name)))
        return known

    def _watched(self, phase: str, verb: Callable[..., Any]) -> Callable[..., Any]:
        ahead = phase in ("prefix", "capture", "solve", "apply")  # the turn is not counted yet

        def call(*given: Any, **named: Any) -> Any:
            turn = self.worker.editor.turns + ahead
            due = [i for i, f in enumerate(self._faults) if (f.phase, f.rank) == (phase, self._placement.world_rank) and f.turn <= turn]
            if phase == "apply":  # others may have applied the turn or not, this one has
                verb(*given, **named)
            for index in due:
                self._strike(index)
            return None if phase == "apply" else verb(*given, **named)

        return call

    def _strike(self, index: int) -> None:
        mark = self._folder / f"{index}.struck"
        if mark.exists():
            return
        mark.touch()
        victim = self._faults[index].victim
        if victim == "memory":
            used = psutil.Process().memory_info().vms
            resource.setrlimit(resource.RLIMIT_AS, (used, used))
            self._taken = _what_was_freed()
            return
        first = self._placement.replica * self._placement.num_shards
        ranks = {"worker": [], "replica": range(first, first + self._placement.num_shards), "coordinator": ["coordinator"]}[victim]
        for other in ranks:
            pid = int((self._folder / f"{other}.pid").read_text())
            if pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
        if victim != "coordinator":
            os.kill(os.getpid(), signal.SIGKILL)


def _what_was_freed() -> list[bytearray]:
    """The memory that earlier work gave back to the allocator, in pieces of 8 MiB: activations find no room, small objects do."""
    taken = []
    with suppress(MemoryError):
        while True:
            taken.append(bytearray(1 << 23))
    return taken


def make_faulty() -> None:
    """Make this process's runs start workers that strike."""
    import workers.group

    (Path(os.environ[_VARIABLE]) / "coordinator.pid").write_text(str(os.getpid()))
    workers.group.RemoteWorker = FaultyWorker  # under the name by which the actors find it
