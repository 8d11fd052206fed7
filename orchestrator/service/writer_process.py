"""The writer as a child: told its configuration on its standard input, whose end tells it to stop; started again when it dies."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from orchestrator.service.config import ServeConfig, plain_config

logger = logging.getLogger("ultraedit")

_FIRST_PAUSE, _LONGEST_PAUSE, _LIVED_WELL = 0.5, 15.0, 60.0
_EXIT_INPUT = 2
_STOP_SECONDS = 15.0


class WriterProcess:
    """A writer, and another one whenever it dies.

    Args:
        config: The service's configuration.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._told = (json.dumps(plain_config(config)) + "\n").encode()
        self._stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def start(self, on_give_up: Callable[[], None]) -> None:
        """Start it.

        Args:
            on_give_up: Called once if it cannot be started with this configuration; it has said why.
        """
        self._thread = threading.Thread(target=self._keep, args=(on_give_up,), name="writer process", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Have it stop after what it does now, or at once if that takes too long."""
        self._stop.set()
        process = self._process
        if process is not None and process.poll() is None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:  # nothing is lost: what is not committed is tried again
                process.kill()
        if self._thread is not None:
            self._thread.join()

    def _keep(self, on_give_up: Callable[[], None]) -> None:
        pause = _FIRST_PAUSE
        while not self._stop.is_set():
            began = time.monotonic()
            code = self._run_once()
            if self._stop.is_set():
                return
            if code == _EXIT_INPUT:
                on_give_up()
                return
            pause = _FIRST_PAUSE if time.monotonic() - began > _LIVED_WELL else min(2 * pause, _LONGEST_PAUSE)
            logger.warning("writer    ended with code %d; starting it again in %.1f s", code, pause)
            self._stop.wait(pause)

    def _run_once(self) -> int:
        command = [sys.executable, "-m", "orchestrator.service.writer"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
        if self._process.stdin is not None:
            try:
                self._process.stdin.write(self._told)
                self._process.stdin.flush()
            except BrokenPipeError:  # it ended at once; its code says why
                logger.warning("writer    ended before it was told anything")
        return self._process.wait()
