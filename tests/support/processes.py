"""``ultraedit`` in a process of its own, as a shell starts it: with pipes, closed streams, and terminals of any width."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = ROOT / "tests" / "data" / "run-0.1.0" / "finished"
COMMAND = [sys.executable, "-m", "orchestrator"]


def environment(**more: str) -> dict[str, str]:
    """This process's, without what decides the width and encoding of a terminal."""
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "PYTHONIOENCODING", "FORCE_COLOR", "NO_COLOR")}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def ultraedit(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run to the end with both outputs caught."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**more), timeout=300, check=False)


def shell(script: str, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which ``"$@"`` is ``ultraedit`` with arguments."""
    command = ["bash", "-c", script, "bash", *COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**more), timeout=300, check=False)


def in_terminal(*arguments: object, columns: int, **more: str) -> tuple[int, bytes]:
    """Run in a terminal of so many columns; the exit code, and all that was written to it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], env=environment(TERM="xterm", **more), **streams)
    os.close(theirs)
    written = b""
    while chunk := _read(ours):
        written += chunk
    os.close(ours)
    return process.wait(300), written


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that the last writer has closed it
        return b""
