"""``python -m orchestrator.demo``: convert the demo's model, once, and print its folder."""

from pathlib import Path

import click
from rich.console import Console

from orchestrator.demo import gemma_folder
from orchestrator.progress import Progress

click.echo(gemma_folder(Path(".cache"), Progress(Console(stderr=True))))
