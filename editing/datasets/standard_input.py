"""Standard input as a file: it can be read once, and a run reads its edits more than once, so it is kept for as long as the program runs."""

import atexit
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from editing.errors import InputError

STANDARD_INPUT = "-"
"""How it is called where a file is asked for."""


@cache
def standard_input() -> Path:
    """A file with all of standard input, in the system's folder for temporary files.

    Raises:
        InputError: Nobody writes to it, or the copy cannot be written.
    """
    if sys.stdin is None or sys.stdin.isatty():
        hint = "pipe edits to it, the same ones again for a run that is resumed, or give a file"
        raise InputError(f"edits: - is standard input, and nothing is piped to it; {hint}")
    folder = Path(tempfile.mkdtemp(prefix="ultraedit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "standard-input"
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, 2**20)
    except OSError as error:
        raise InputError(
            f"edits: standard input cannot be kept in {folder} ({error.strerror}); set TMPDIR to a folder with room, or give a file"
        ) from None
    return path
