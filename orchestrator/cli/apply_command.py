"""``ultraedit apply``: an edited model from a delta and the model that it was made from."""

from pathlib import Path

import rich_click as click

from orchestrator.cli.console import say
from orchestrator.cli.help import command
from orchestrator.cli.libraries import ready_libraries
from orchestrator.cli.options import FOLDER, NAMED_MODEL


@command("apply")
@click.argument("delta", type=click.Path(path_type=Path))
@click.option("--base", **NAMED_MODEL, help="The model that was edited. [default: the one that the delta names]")
@click.option("--output", **FOLDER, required=True, help="Folder for the edited model.")
def apply(delta: Path, base: str | None, output: Path) -> None:
    """Make the edited model from a delta and its base model.

    DELTA is the delta's folder, or that of a run with --save delta.
    """
    ready_libraries()
    from editing.files.delta import ABOUT, apply_delta

    inner = delta / "delta"
    folder = inner if (inner / ABOUT).is_file() else delta
    used = apply_delta(folder, output, base=base)
    say(f"{output}: {used} with the edits of {folder}")
