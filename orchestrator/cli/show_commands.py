"""Commands that read finished runs: ``show``, ``history``, ``diff``, ``compare``. They load neither the model nor torch."""

from pathlib import Path

import rich_click as click

from orchestrator.cli.console import screen
from orchestrator.cli.help import command
from orchestrator.cli.options import FROM_ZERO, run_dir


@command("show")
@run_dir
@click.option("--samples", **FROM_ZERO, default=12, show_default=True, help="Prompts to show.")
def show(run_dir: Path, samples: int) -> None:
    """Print a finished run: text before and after, metrics, files."""
    from orchestrator.cli.run_tables import show_run

    show_run(run_dir, screen(), samples=samples)


@command("history")
@run_dir
@click.option("--edits", "show_edits", is_flag=True, help="Every edit with its id, not only the turns.")
def history(run_dir: Path, show_edits: bool) -> None:
    """List the turns that were applied, refused or rolled back."""
    from orchestrator.cli.run_tables import show_history

    show_history(run_dir, screen(), edits=show_edits)


@command("diff")
@run_dir
@click.argument("turn_a", type=click.IntRange(min=0))
@click.argument("turn_b", type=click.IntRange(min=0))
@click.option("--samples", **FROM_ZERO, default=20, show_default=True, help="Edits to show.")
def diff(run_dir: Path, turn_a: int, turn_b: int, samples: int) -> None:
    """Show what changed from one turn to another: edits, weights, health."""
    from orchestrator.cli.run_tables import show_diff

    show_diff(run_dir, turn_a, turn_b, screen(), samples=samples)


@command("compare")
@click.argument("run_dirs", nargs=-1, required=True, metavar="RUN_DIR RUN_DIR...", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, an object for each run.")
def compare(run_dirs: tuple[Path, ...], as_json: bool) -> None:
    """Show finished runs side by side: metrics, health, seconds, memory."""
    from orchestrator.cli.compare_tables import compare_runs

    if len(run_dirs) < 2:
        raise click.UsageError("expected two runs or more; ultraedit show RUN_DIR prints a single one")
    compare_runs(run_dirs, screen(), as_json=as_json)
