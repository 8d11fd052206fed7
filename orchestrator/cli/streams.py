"""Standard output and error as they are found: closed, a pipe that nobody reads, a terminal that knows ASCII only.

What cannot be encoded is written escaped. A result that cannot be written ends the command; a message that cannot be
written does not: a run of hours shall outlive the window that it was started in.
"""

import codecs
import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, cast

from editing.errors import UltraEditError

ESCAPE = "ultraedit-escape"
"""Name of the error handler of codecs that escapes what an encoding lacks."""

_PLAINER = {"…": ".", "–": "-", "—": "-", "━": "-", "╸": "-", "╺": "-", "─": "-", "═": "=", "│": "|", "•": "*"}
"""Signs that this program draws itself, and what an encoding without them gets: of the same width, so that columns stay aligned."""

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


class ReaderGone(Exception):
    """Nobody reads standard output any more, as after ``| head -1``. To be ended without a word, as other tools end."""


class OutputStream:
    """A text stream that hands each failed write to a function.

    Args:
        stream: The stream to write to.
        failed: Called with the error of a write; what it raises goes to the writer, if it returns, the text is lost.
    """

    def __init__(self, stream: Any, failed: Callable[[OSError], None]) -> None:
        self._stream, self._failed = stream, failed

    def write(self, text: str) -> int:
        """Write all of a text, or lose it."""
        try:
            if text != "":  # with which click probes a stream, to ignore what comes of it
                self._stream.write(text)
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        """Send what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Make this process's standard streams safe to write to; once, before anything is written or opened."""
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # somebody's own stream, which is left as it is
            stream.reconfigure(errors=ESCAPE)  # type: ignore[union-attr]
    sys.stdout = cast(Any, OutputStream(sys.stdout, _result_lost))
    sys.stderr = cast(Any, OutputStream(sys.stderr, lambda _: None))


def flush_streams() -> None:
    """Write what a command that failed had still to say; at the end of the process Python would complain of what it cannot write."""
    with suppress(ReaderGone, UltraEditError):
        sys.stdout.flush()
    sys.stderr.flush()


def plain(text: str, encoding: str) -> str:
    """A text as an encoding can write it, with what is missing and what would control a terminal escaped."""
    text = text.translate(_CONTROLS)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.encode(encoding, ESCAPE).decode(encoding)
    return text


def _open_what_is_closed() -> None:
    """Let a closed descriptor lead nowhere: else the next file that is opened gets its number, and messages go into that file."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # for the life of the process


def _result_lost(error: OSError) -> NoReturn:
    with suppress(OSError):  # what is still buffered is lost too, or Python tries again at its end
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    if error.errno == errno.EPIPE:
        raise ReaderGone from None
    raise UltraEditError(f"standard output: {error.strerror or error}") from None


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    return "".join(_PLAINER.get(sign) or sign.encode("ascii", "backslashreplace").decode("ascii") for sign in found), error.end


codecs.register_error(ESCAPE, _escape)
