"""The page of the command line, written from the commands themselves: ``<!-- commands -->`` becomes their reference."""

import html
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

MARKER = "<!-- commands -->"
_DEFAULT = re.compile(r"\s*\[(?:default: )(.*)\]$")


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the reference in the marker's place."""
    return markdown.replace(MARKER, reference()) if MARKER in markdown else markdown


def reference() -> str:
    """All commands, as Markdown."""
    from orchestrator.cli.main import cli

    return "\n\n".join(_commands(cli, click.Context(cli, info_name="ultraedit")))


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, parent=context, info_name=name)
        if isinstance(command, click.Group):
            yield f"## {inner.command_path}\n\n{_text(command.help)}"
            yield from _commands(command, inner)
        else:
            yield _command(command, inner)


def _command(command: click.Command, context: click.Context) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {context.command_path}", f"```text\n{usage}\n```", _text(command.help)]
    for panel, options in _panels(command, context).items():
        if panel:
            parts.append(f"**{panel}**")
        parts.append("\n".join(['<table class="options" markdown="0"><tbody>', *map(_row, options), "</tbody></table>"]))
    return "\n\n".join(parts)


def _panels(command: click.Command, context: click.Context) -> dict[str, list[tuple[str, str, str]]]:
    """Options by the group that ``--help`` shows them in, where it has groups."""
    panels: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and not parameter.hidden and "--help" not in parameter.opts:
            panels[_panel(parameter)].append(_option(parameter, context))
    return panels


def _panel(option: click.Option) -> str:
    panel: Any = getattr(option, "panel", None)
    return (panel if isinstance(panel, str) else panel[0]) if panel else ""


def _option(option: click.Option, context: click.Context) -> tuple[str, str, str]:
    """Its names with what it takes, its meaning, its default."""
    names, text = option.get_help_record(context) or ("", "")
    if found := _DEFAULT.search(text):
        return names, text[: found.start()], found[1]
    return names, text, ""


def _row(option: tuple[str, str, str]) -> str:
    names, text, default = (html.escape(part) for part in option)
    after = f' <span class="default">Default: {default}</span>' if default else ""
    return f"<tr><td><code>{names}</code></td><td>{text}{after}</td></tr>"


def _text(help_text: str | None) -> str:
    """A command's own words; what stands between blank lines is a paragraph."""
    return "\n\n".join(" ".join(part.split()) for part in (help_text or "").replace("\b", "").split("\n\n"))
