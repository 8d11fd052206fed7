"""``ultraedit data``: commands about edit sets, not about models."""

import click

from orchestrator.build_cli import build_command


@click.group()
def data() -> None:
    """Build edit sets."""


data.add_command(build_command)
