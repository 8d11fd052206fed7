"""Which process writes to a folder on shared storage, and whether it is still alive.

On the same machine the process id tells. From another machine a heartbeat does: a file that its owner rewrites every few
seconds. A reader watches whether it changes, so clocks are not compared, and a machine that died leaves no lock.
"""

import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_INTERVAL = 3.0
"""Seconds between two heartbeats."""

_TIMEOUT = 15.0
"""Seconds without a heartbeat after which an owner counts as dead."""

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
        """Whether it is another process, and alive. Takes up to :data:`_TIMEOUT` seconds for one on another machine."""
        if self.host == socket.gethostname():
            return self != Owner.this() and _runs(self.pid)
        first, deadline = _read(folder), time.monotonic() + _TIMEOUT
        while first is not None and time.monotonic() < deadline:
            time.sleep(_INTERVAL / 3)
            if _read(folder) != first:
                return True
        return False


class Heartbeat:
    """Heartbeats in a folder, from now until :meth:`stop`."""

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
        while not self._stop.wait(_INTERVAL):
            self._write(count)
            count += 1

    def _write(self, count: int) -> None:
        with suppress(OSError):  # the run itself will report a full disk
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
