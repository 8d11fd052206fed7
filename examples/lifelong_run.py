"""A model that learns something every day: append to a run, look at what it did, take a day back.

    python examples/lifelong_run.py --model .cache/gemma-3-270m --output runs/daily

`make demo` puts that model there. Each step is a command of `ultraedit`. `--resume auto` makes the first one safe to repeat: after a
crash it goes on from its last checkpoint.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from orchestrator.cli.main import main as run_command_line
from orchestrator.demo import FACTS


def ultraedit(*arguments: str) -> None:
    """Run a command in this process. One that fails has said in one line what is wrong, and ends the script with its exit code."""
    print("\n$ ultraedit", *arguments, flush=True)
    if code := run_command_line(arguments):
        sys.exit(code)


def turns_of(run: Path) -> int:
    """Turns that a finished run has applied."""
    turns: int = json.loads((run / "metrics.json").read_text())["turns"]
    return turns


def days(facts: Path, each: int, folder: Path) -> list[Path]:
    """The first facts of a file in two files, one a day."""
    lines = facts.read_text().splitlines(keepends=True)
    files = [folder / "monday.jsonl", folder / "tuesday.jsonl"]
    for number, file in enumerate(files):
        file.write_text("".join(lines[number * each : (number + 1) * each]))
    return files


@click.command()
@click.option("--model", default=".cache/gemma-3-270m", show_default=True, help="Folder or Hub id.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/daily"), show_default=True, help="Folder of the run.")
@click.option("--edits", type=click.Path(path_type=Path, exists=True), default=FACTS, help="JSON lines; by default the demo's 240 facts.")
@click.option("--each-day", default=100, show_default=True, help="Facts a day.")
@click.option("--option", "options", multiple=True, help="Further option of the run, as edits-per-turn=20; may be given several times.")
def main(model: str, output: Path, edits: Path, each_day: int, options: tuple[str, ...]) -> None:
    """Edit a model on two days, and take the second day back."""
    further = [f"--{option}" for option in options]
    with TemporaryDirectory() as folder:
        monday, tuesday = days(edits, each_day, Path(folder))
        ultraedit("edit", "--model", model, "--edits", str(monday), "--output", str(output), "--resume", "auto", "--tracking-uri", "none", *further)
        after_monday = turns_of(output)
        ultraedit("edit", "--resume", str(output), "--edits", str(tuesday))
    ultraedit("diff", str(output), str(after_monday), str(turns_of(output)), "--samples", "5")
    ultraedit("rollback", str(output), "--to-turn", str(after_monday))
    ultraedit("history", str(output))


if __name__ == "__main__":
    main()
