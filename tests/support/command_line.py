"""The command line in this process: what one call of it gave."""

import io
import logging
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

MODULES = "model.layers.{1,2}.mlp.{gate,up}_proj"


@dataclass(frozen=True)
class Outcome:
    """What one call of ``ultraedit`` gave."""

    code: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        """The lines that say why a run stopped."""
        return [line for line in self.stderr.splitlines() if line.startswith("error:")]


@dataclass(frozen=True)
class FinishedRun:
    """A complete run of the tiny Llama, tracked in a database of its own."""

    path: Path
    tracking_uri: str
    outcome: Outcome


def draw_cheaply() -> None:
    """Draw the plots of all runs of this process small and without a look at where their texts fit: a third of a tiny run's time."""
    from orchestrator.run import plots

    plots._LAYOUT, plots._DPI = None, 20  # type: ignore[assignment]


def run_command_line(*arguments: object) -> Outcome:
    from orchestrator.cli.main import main

    logger = logging.getLogger("ultraedit")
    before = logger.handlers, logger.propagate
    stdout, stderr = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            code = main([str(a) for a in arguments])
    finally:
        logger.handlers, logger.propagate = before  # other tests listen to it in their own way
    return Outcome(code, stdout.getvalue(), stderr.getvalue())
