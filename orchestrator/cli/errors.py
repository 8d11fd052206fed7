"""How a command ends: every failure is one line and an exit code.

0    done                                    2    the command line cannot be understood
1    failed, or the answer is no             130  interrupted; 141, nobody read the output to its end

What was not foreseen says where it happened, and leaves its traceback in a file, or shows it with ``--debug``.
"""

import platform
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import click
from click.exceptions import NoArgsIsHelpError

from editing.errors import OutOfMemory, UltraEditError, ran_out_of_memory
from orchestrator.cli.console import complain
from orchestrator.cli.streams import ReaderGone

FAILED, USAGE, INTERRUPTED, READER_GONE = 1, 2, 130, 141

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("editing", "workers", "orchestrator")
_WORKERS = ("workers/worker.py", "workers/group.py")

_PHASES = {
    "load": "loading the model",
    "prepare": "running the layers below the edited ones",
    "apply": "editing",
    "observe": "warming up",
    "measure_health": "measuring the model's health",
    "evaluate": "evaluating the edits",
    "generate": "generating text",
    "save_state": "writing a checkpoint",
    "load_state": "reading a checkpoint",
    "save": "saving the model",
}
"""The verbs of a worker, and what a run does while one is carried out."""


@dataclass
class Invocation:
    """What is being run, for the line that says why it failed.

    Attributes:
        command: Names of the command, as ``data inspect``.
        debug: Whether tracebacks are shown.
    """

    command: str = ""
    debug: bool = False


def exit_code_of(run: Callable[[], int], invocation: Invocation) -> int:
    """Carry out a command; its exit code, once its failure has been shown."""
    try:
        return run()
    except ReaderGone:
        return READER_GONE
    except (KeyboardInterrupt, click.Abort) as error:
        return _fail("interrupted", INTERRUPTED, error, invocation)
    except NoArgsIsHelpError as error:
        sys.stderr.write(f"{error.format_message()}\n")
        return USAGE
    except click.UsageError as error:
        return _fail(f"{error.format_message()} (see {error.ctx.command_path if error.ctx else 'ultraedit'} --help)", USAGE, error, invocation)
    except Exception as error:
        return _fail(*_line_and_code(error, invocation), error, invocation)


def _line_and_code(error: Exception, invocation: Invocation) -> tuple[str, int]:
    if isinstance(error, UltraEditError):
        return str(error), error.exit_code
    if isinstance(error, (RuntimeError, MemoryError)) and ran_out_of_memory(error):
        return str(OutOfMemory.here(error)), OutOfMemory.exit_code
    if isinstance(error, OSError) and error.strerror:  # a full disk, a folder that may not be written, a name too long
        return f"{error.filename or f'{invocation.command}{_place(error)}'}: {error.strerror}", FAILED
    return _unforeseen(error, invocation), FAILED


def _fail(message: str, code: int, error: BaseException, invocation: Invocation) -> int:
    if invocation.debug:
        sys.stderr.write("".join(traceback.format_exception(error)))
    complain(f"error: {' '.join(message.split())}")
    return code


def _unforeseen(error: Exception, invocation: Invocation) -> str:
    """Command, phase, cause, place, and where the traceback is."""
    doing = next((phase for step in _own_steps(error) if (phase := step.phase)), "")
    parts = (invocation.command, doing, *getattr(error, "__notes__", ()), f"unexpected {type(error).__name__}", _shortened(str(error)))
    return f"{': '.join(part for part in parts if part)}{_place(error)}{_report(error, invocation)}"


def _place(error: Exception) -> str:
    """The innermost line of this project's own code that the error passed."""
    return next((f" ({step.file}:{step.line}, {step.function})" for step in reversed(_own_steps(error))), "")


def _report(error: Exception, invocation: Invocation) -> str:
    if invocation.debug:
        return ""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="ultraedit-error-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as log:
            log.write(f"ultraedit {invocation.command}\n{_versions()}\n\n")
            log.writelines(traceback.format_exception(error))
    except OSError:
        return "; show the traceback with: ultraedit --debug ..."
    return f"; the traceback is in {log.name}"


def _versions() -> str:
    names = ("ultraedit-orchestrator", "torch", "transformers")
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"] in names}
    return ", ".join([f"python {platform.python_version()}", *(f"{name} {version}" for name, version in sorted(installed.items()))])


@dataclass(frozen=True)
class _Step:
    """One call of this project's own code on the way to an error."""

    file: str
    line: int
    function: str

    @property
    def phase(self) -> str:
        return _PHASES.get(self.function, "") if self.file in _WORKERS else ""


def _own_steps(error: Exception) -> list[_Step]:
    """Outermost first."""
    steps = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if any(path.is_relative_to(_ROOT / package) for package in _PACKAGES):
            steps.append(_Step(path.relative_to(_ROOT).as_posix(), line, frame.f_code.co_name))
    return steps


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:299].rstrip()}…"
