"""The look of ``--help``: options in groups, no frames, usage on one line where it fits."""

import re
from collections.abc import Callable
from typing import Any

import rich_click as click
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_TRAILING_BLANKS = re.compile(r" +$", re.MULTILINE)
_WIDE = 70
"""Columns from which an option and its value stand side by side."""

_EMPTY_LINES = re.compile(r"\n{3,}")


class _OptionTable(Table):
    """Breaks a narrow column of options between an option and its value, and never within one."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for column in self.columns[:-1]:
            words = [word for cell in column.cells for word in str(cell).split()]
            column.overflow, longest = "fold", max(map(len, words), default=0)
            if options.max_width < _WIDE:
                column.width = longest
        return super().__rich_console__(console, options)


class _OptionPanel(click.RichOptionPanel):
    table_class = _OptionTable


class _Formatter(click.RichHelpFormatter):
    option_panel_class = _OptionPanel

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        self.write(Text.assemble((prefix or "Usage: ", "bold"), prog, " ", (args, "dim"), "\n"))

    def getvalue(self) -> str:
        return _EMPTY_LINES.sub("\n\n", _TRAILING_BLANKS.sub("", super().getvalue()))


class _Context(click.RichContext):
    formatter_class = _Formatter


class Command(click.RichCommand):
    """A command whose help looks like this project's."""

    context_class = _Context


class Group(click.RichGroup):
    """A group of such commands."""

    context_class = _Context
    command_class = Command


SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    "rich_help_config": {
        "theme": "default-slim",
        "enable_theme_env_var": False,
        "text_markup": None,  # brackets in a help text are brackets
        "text_emojis": False,
        "text_paragraph_linebreaks": "\n\n",
        "padding_helptext_first_line": (0, 0, 1, 0),
        "options_table_help_sections": ["help", "required", "default"],
        "default_string": "\\[default: {}]",
    },
}
"""Of the outermost group's context; the others inherit them."""


def command(name: str) -> Callable[[Callable[..., Any]], Command]:
    """Decorator that makes a function a command."""
    return click.command(name, cls=Command)
