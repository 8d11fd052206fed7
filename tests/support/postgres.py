"""A PostgreSQL server of a test's own, from Debian's packages, on a free port of the loopback interface."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.ports import free_ports

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def is_installed() -> bool:
    """Whether there are its programs, and a user to run them: it refuses to run as root."""
    return bool(_BINARIES) and (os.geteuid() != 0 or _server_user() is not None)


class Postgres:
    """A server that is started and ended by this process.

    Args:
        folder: Where its data go.
    """

    def __init__(self, folder: Path) -> None:
        self._data, self._log = folder / "data", folder / "log"
        (self._port,) = free_ports(1)
        if os.geteuid() == 0:
            folder.chmod(0o755)
            shutil.chown(folder, _server_user())
        self._run("initdb", "-D", str(self._data), "-U", "ultraedit", "--auth", "trust", "--no-sync")
        self.url = f"postgresql://ultraedit@127.0.0.1:{self._port}/postgres"
        self.start()

    @classmethod
    @contextmanager
    def running(cls) -> Iterator["Postgres"]:
        """A server for the time of the block. Its folder is none of pytest's, which it closes to other users whenever it starts."""
        with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
            server = cls(Path(folder))
            try:
                yield server
            finally:
                server.stop()

    def start(self) -> None:
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "-D", str(self._data), "-l", str(self._log), "-w", "-o", options, "start")

    def stop(self) -> None:
        """End it at once, whatever its connections are doing."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", "immediate", "stop")

    def cut(self) -> None:
        """End every connection that is open, whatever it is doing."""
        others = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        self._run("psql", self.url, "-c", f"SELECT pg_terminate_backend(pid) {others}")

    def _run(self, program: str, *arguments: str) -> None:
        user = _server_user() if os.geteuid() == 0 else None
        done = subprocess.run(
            [str(_BINARIES[-1] / program), *arguments],
            user=user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
        )
        assert done.returncode == 0, done.stderr.decode()


def _server_user() -> str | None:
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return None
