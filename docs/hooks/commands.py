"""The page of the command line, written from the commands themselves: ``<!-- commands -->`` becomes their reference."""

import html
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
MARKER = "<!-- commands -->"
_DEFAULT = re.compile(r"\s*\[default: (.*)\]$")


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the reference in the marker's place."""
    return markdown.replace(MARKER, reference()) if MARKER in markdown else markdown


def reference() -> str:
    """All commands, as Markdown: those of this checkout, whichever is installed."""
    sys.path.insert(0, str(ROOT))
    from orchestrator.cli.main import cli

    return "\n\n".join(_commands(cli, click.Context(cli, info_name="ultraedit")))


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    yield _command(group, context)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, parent=context, info_name=name)
        if isinstance(command, click.Group):
            yield from _commands(command, inner)
        else:
            yield _command(command, inner)


def _command(command: click.Command, context: click.Context) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {context.command_path}", f"```text\n{usage}\n```", _text(command.help)]
    for panel, options in _panels(command, context).items():
        if panel:
            parts.append(f"**{panel}**")
        parts.append("\n".join(['<table class="options" markdown="0"><tbody>', *options, "</tbody></table>"]))
    return "\n\n".join(parts)


def _panels(command: click.Command, context: click.Context) -> dict[str, list[str]]:
    """Rows of options by the group that ``--help`` shows them in, where it has groups."""
    panels: dict[str, list[str]] = defaultdict(list)
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and not parameter.hidden and "--help" not in parameter.opts:
            panels[_panel(parameter)].append(_row(parameter, context))
    return panels


def _panel(option: click.Option) -> str:
    panel: Any = getattr(option, "panel", None)
    return (panel if isinstance(panel, str) else panel[0]) if panel else ""


def _row(option: click.Option, context: click.Context) -> str:
    """Its names with what it takes, its meaning, its default."""
    names = (option.get_help_record(context) or ("", ""))[0].replace("INTEGER RANGE", "N").replace("FLOAT RANGE", "X")
    text, default = option.help or "", _shown_default(option)
    if found := _DEFAULT.search(text):
        text, default = text[: found.start()], found[1]
    after = "Required." if option.required else f"Default: {default}" if default else ""
    cells = f"<code>{html.escape(names)}</code>", f'{html.escape(text)} <span class="default">{html.escape(after)}</span>'
    return f"<tr><td>{cells[0]}</td><td>{cells[1]}</td></tr>"


def _shown_default(option: click.Option) -> str:
    if not option.show_default or option.is_flag or option.default in (None, ()):
        return ""
    return str(option.show_default if isinstance(option.show_default, str) else option.default)


def _text(help_text: str | None) -> str:
    """A command's own words; what stands between blank lines is a paragraph."""
    return "\n\n".join(" ".join(part.split()) for part in (help_text or "").replace("\b", "").split("\n\n"))
