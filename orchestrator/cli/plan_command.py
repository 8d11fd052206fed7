"""``ultraedit plan``: what editing a model would take, before anything is loaded."""

from typing import Any

import click
from rich.console import Console
from rich.table import Table

from editing.memory.budget import parse_size
from editing.model.modules import split_patterns
from orchestrator.plan_model import PlanOptions, plan


@click.command("plan")
@click.option("--model", required=True, help="Folder, which may hold nothing but a config.json, or Hub id.")
@click.option("--modules", help="Modules to edit, as for edit; by default the preset's.")
@click.option("--preset", help="Name of a preset; by default the model's own.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="What it would run on.")
@click.option("--device-memory", help="Memory of one device, as 24GiB; says whether it fits, and what would.")
@click.option("--shards", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--replicas", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--edits-per-turn", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--batch-tokens", type=click.IntRange(min=1), default=2048, show_default=True)
@click.option("--flops", type=click.FloatRange(min=0, min_open=True), help="Flop/s of a device, as 1e14; by default this machine's CPU is measured.")
@click.option("--read", type=click.FloatRange(min=0, min_open=True), help="Bytes a second that the disk gives, as 3e9; by default measured.")
@click.pass_context
def plan_command(context: click.Context, /, device: str, device_memory: str | None, modules: str | None, **options: Any) -> None:
    """Say what editing a model would take: modules, memory, disk, traffic, time. Reads no weights.

    The exit code is 1 if it does not fit.
    """
    budget = parse_size(device_memory) if device_memory else None
    patterns = split_patterns(modules) if modules else None
    planned = plan(PlanOptions(**options, cuda=device == "cuda", device_memory=budget, modules=patterns))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for topic, told in planned.lines:
        table.add_row(topic, told)
    Console(markup=False, emoji=False).print(table)
    if not planned.fits:
        context.exit(1)
