"""Where the command line writes: results on standard output, messages and progress on standard error."""

import logging
from typing import Any

from rich.console import Console
from rich.text import Text

from orchestrator.cli.streams import plain


class Screen(Console):
    """A console that shows text as text: no markup, no emoji codes, nothing that its encoding lacks or that controls a terminal."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:  # all of rich's strings pass here, cells of tables too
        return super().render_str(plain(text, self.encoding), **options)


def screen() -> Screen:
    """The console of results, on what is standard output now."""
    return Screen()


def messages() -> Screen:
    """The console of messages and progress."""
    return Screen(stderr=True)


def say(text: str) -> None:
    """Write a line of results, however long."""
    screen().print(text, soft_wrap=True)


def complain(text: str) -> None:
    """Write a message of one line, however long."""
    messages().print(text, soft_wrap=True, highlight=False)


class _Lines(logging.Handler):
    """Log lines on standard error, each on one line; a progress bar stays below them."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


def show_log() -> None:
    """Show this project's log lines, and no other library's: those report through errors, which are shown."""
    logger = logging.getLogger("ultraedit")
    logger.handlers, logger.propagate = [_Lines()], False
    logger.setLevel(logging.INFO)
