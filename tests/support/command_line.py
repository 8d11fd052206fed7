"""The command line in this process: what one call of it gave."""

import io
import logging
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

MODULES = "model.layers.{1,2}.mlp.{gate,up}_proj"


TICKS = ("xtick.bottom", "xtick.labelbottom", "ytick.left", "ytick.labelleft")
"""What a plot's axes have, by Matplotlib's names."""


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


def conclude_cheaply() -> None:
    """What all runs of this process do at their end, in little: half of a tiny run's time otherwise.

    Plots are small, without numbers at their axes, and nobody looks where their texts fit. Of the shipped held-out
    text the first passages are measured. Nothing is kept for the next run, which therefore measures all that it is tested for.
    """
    import matplotlib

    from editing import reference_text
    from editing.monitoring import held_out
    from orchestrator.run import plots, unedited_answers

    plots._LAYOUT, plots._DPI = None, 20  # type: ignore[assignment]
    matplotlib.rcParams |= dict.fromkeys(TICKS, False)
    held_out.passages_in = lambda text: reference_text.passages_in(text)[:3]  # type: ignore[assignment]
    unedited_answers.folder_of_all = lambda: None


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
