"""``ultraedit plan``: what editing a model would take, before anything is loaded."""

from typing import Any

import rich_click as click

from orchestrator.cli.console import screen
from orchestrator.cli.help import command
from orchestrator.cli.libraries import ready_libraries
from orchestrator.cli.options import COUNT, NAMED_MODEL, POSITIVE, cluster, dtype_option, memory, method, model_and_data
from orchestrator.cli.tables import Column, Sheet


@command("plan")
@model_and_data("--model", **NAMED_MODEL, required=True, help="Folder, in which a config.json is enough, or Hub id.")
@method("--preset", metavar="NAME|FILE", help="Settings by name. [default: the model's own preset]")
@method("--modules", metavar="NAMES", help="Modules to edit, as for ultraedit edit. [default: the preset's]")
@method("--edits-per-turn", **COUNT, default=100, show_default=True, help="Edits that share one shift of each module.")
@dtype_option
@memory("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="The kind of device.")
@memory("--device-memory", metavar="SIZE", help="Memory of one device, such as 24GiB. Says whether the model fits, and what would.")
@memory("--batch-tokens", **COUNT, default=2048, show_default=True, help="Tokens in one batch, padding included.")
@memory("--flops", **POSITIVE, help="Flop/s of a device, such as 1e14. [default: this machine's CPU is measured]")
@memory("--read", **POSITIVE, help="Bytes per second that the disk delivers, such as 3e9. [default: this machine's disk is measured]")
@cluster("--shards", **COUNT, default=1, show_default=True, help="Workers that one copy of the model is cut over.")
@cluster("--replicas", **COUNT, default=1, show_default=True, help="Copies of the model.")
@click.pass_context
def plan_command(context: click.Context, /, device: str, device_memory: str | None, modules: str | None, **options: Any) -> None:
    """Say what editing a model would take: modules, memory, disk, traffic, time. Reads no weights.

    The exit code is 1 if it does not fit.
    """
    ready_libraries()
    from editing.memory.budget import parse_size
    from editing.model.modules import split_patterns
    from orchestrator.plan_model import PlanOptions, plan

    budget = parse_size(device_memory) if device_memory else None
    patterns = split_patterns(modules) if modules else None
    planned = plan(PlanOptions(**options, cuda=device == "cuda", device_memory=budget, modules=patterns))
    table = Sheet("", Column(text=True), header=False)
    for topic, found in planned.lines:
        table.add(topic, found)
    screen().print(table)
    if not planned.fits:
        context.exit(1)
