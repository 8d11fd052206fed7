"""Real processes that start within milliseconds: forked from one that has imported everything (:mod:`tests.support.warm`)."""

import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.paths import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.warm"])


class ForkedRun:
    """``ultraedit`` in a process of its own, used as a :class:`subprocess.Popen` is.

    Args:
        arguments: Of the command line.
        environment: Variables on top of this process's.
        before: Called in the new process before the command line: ``module:function``, and the values that it is given. A name,
            since what it imports may read the environment, as Ray does, and must find the one above.
        folder: Where it is run.
        script: What is run instead of the command line: a Python file, as the interpreter would run it.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        *,
        environment: Mapping[str, str] | None = None,
        before: tuple[str, *tuple[int, ...]] | None = None,
        folder: Path = ROOT,
        script: Path | None = None,
    ) -> None:
        self._said = tempfile.TemporaryDirectory(prefix="ultraedit-said-")
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})}
        given = (list(map(str, arguments)), variables, before, folder, script, Path(self._said.name))
        self._process = CONTEXT.Process(target=_run, args=given)
        self._process.start()
        self.pid: int = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit code, or nothing if it goes on."""
        self._process.join(timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it wrote to its standard output and error."""
        if self.wait(timeout) is None:
            raise subprocess.TimeoutExpired("ultraedit", timeout or 0)
        return self._read("stdout"), self._read("stderr")

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _read(self, name: str) -> str:
        return (Path(self._said.name) / name).read_text(errors="replace")


def _run(
    arguments: list[str],
    environment: dict[str, str],
    before: tuple[str, *tuple[int, ...]] | None,
    folder: Path,
    script: Path | None,
    said: Path,
) -> None:
    os.setpgrp()  # a Ctrl-C in the terminal of the tests is not meant for it
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["ultraedit", *arguments]
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT), number)
    if before is not None:
        name, *values = before
        module, _, function = name.partition(":")
        getattr(importlib.import_module(module), function)(*values)
    if script is not None:
        sys.argv[0], sys.path[0] = str(script), str(script.parent)
        runpy.run_path(str(script), run_name="__main__")
        return
    from orchestrator.__main__ import main

    main()
