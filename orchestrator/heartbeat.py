"""Who writes to a folder on storage that several machines share, and whether they still do.

On one machine a process id tells. From another only a sign of life does: a file that its owner writes anew every few
seconds. Whoever asks reads it for a while; no two clocks are compared, and no lock is left by a machine that died.
"""

import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_EVERY = 3.0
"""Seconds between two signs of life."""

_PATIENCE = 15.0
"""Seconds without one after which an owner counts as dead."""

_FILE = "heartbeat"


@dataclass(frozen=True, slots=True)
class Owner:
    """A process on a machine."""

    pid: int
    host: str

    @classmethod
    def this(cls) -> "Owner":
        return cls(os.getpid(), socket.gethostname())

    @classmethod
    def parse(cls, text: str) -> "Owner | None":
        """What :meth:`__str__` gives; ``None`` for any other text."""
        pid, _, host = text.partition("@")
        return cls(int(pid), host or socket.gethostname()) if pid.isdecimal() else None

    def __str__(self) -> str:
        return f"{self.pid}@{self.host}"

    def is_alive(self, folder: Path) -> bool:
        """Whether it is another process that is at work in a folder. May take seconds for one of another machine."""
        if self.host == socket.gethostname():
            return self != Owner.this() and _runs(self.pid)
        first, deadline = _read(folder), time.monotonic() + _PATIENCE
        while first is not None and time.monotonic() < deadline:
            time.sleep(_EVERY / 3)
            if _read(folder) != first:
                return True
        return False


class Heartbeat:
    """Signs of life in a folder, from now until :meth:`stop`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._stop = threading.Event()
        self._write(0)
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        count = 1
        while not self._stop.wait(_EVERY):
            self._write(count)
            count += 1

    def _write(self, count: int) -> None:
        with suppress(OSError):  # a full disk is the run's to report
            self._path.write_text(str(count))


def _read(folder: Path) -> str | None:
    try:
        return (folder / _FILE).read_text()
    except OSError:
        return None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
