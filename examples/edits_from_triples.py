"""An edit set from facts that you have as triples, and a model edited with it within a memory budget.

    python examples/edits_from_triples.py --model .cache/gemma-3-270m --output runs/triples

`make demo` puts that model there. `triples.tsv` beside this file has a subject, a relation and an object a line; the questions come from
the templates that ship with the project. An edit's target is on purpose not the true object, so that a model cannot have known it.
"""

import sys
from pathlib import Path

import click

from orchestrator.cli.main import main as run_command_line

TRIPLES = Path(__file__).with_name("triples.tsv")


def ultraedit(*arguments: str) -> None:
    """Run a command in this process. One that fails has said in one line what is wrong, and ends the script with its exit code."""
    print("\n$ ultraedit", *arguments, flush=True)
    if code := run_command_line(arguments):
        sys.exit(code)


@click.command()
@click.option("--model", default=".cache/gemma-3-270m", show_default=True, help="Folder or Hub id.")
@click.option("--triples", type=click.Path(path_type=Path, exists=True), default=TRIPLES, help="TSV, JSON lines or Parquet.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/triples"), show_default=True, help="Folder for the edits and the run.")
@click.option("--device-memory", default="auto", show_default=True, help="Memory that the run may use, as 6GiB.")
@click.option("--option", "options", multiple=True, help="Further option of the run, as edits-per-turn=20; may be given several times.")
def main(model: str, triples: Path, output: Path, device_memory: str, options: tuple[str, ...]) -> None:
    """Build edits from triples, look at them, and edit a model with them."""
    output.mkdir(parents=True, exist_ok=True)
    edits, run = str(output / "edits"), str(output / "run")
    ultraedit("data", "build", "--triples", str(triples), "--output", edits, "--seed", "1", "--workers", "1")
    ultraedit("data", "inspect", edits)
    further = [f"--{option}" for option in options]
    ultraedit("edit", "--model", model, "--edits", edits, "--output", run, "--device-memory", device_memory, "--tracking-uri", "none", *further)


if __name__ == "__main__":
    main()
