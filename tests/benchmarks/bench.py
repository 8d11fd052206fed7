"""What the fast paths bring on this machine, against the plain baseline, as Markdown tables. ``make bench`` runs it.

python -m tests.benchmarks.bench [--quick] [--turns N] [--model DIR] [--edits FILE] [--output FILE.md]
"""

import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import click
from transformers.utils import logging

from editing import UltraEditError
from tests.benchmarks.ablation import run_ablation
from tests.benchmarks.scaling import DEPTHS, EDITS_PER_TURN, over_depth, over_edits
from tests.benchmarks.solves import NUM_ROWS, time_solves
from tests.benchmarks.turns import PHASES, SIDES, Comparison, Memory, compare, measure_memory, run_child
from tests.benchmarks.whole_job import PHASES as JOB_PHASES
from tests.benchmarks.whole_job import run_here, run_plainly
from tests.benchmarks.workload import Workload, choose_edits, machine_line, matmul_speeds

TOLERANCE = 1e-3
"""Largest relative error of a module's total shift; beyond it the two editors do not do the same thing."""


class Page:
    """Markdown, shown as it grows and written to a file at the end of each section."""

    def __init__(self, output: Path | None) -> None:
        self._output = output
        self._blocks: list[str] = []

    def text(self, block: str) -> None:
        """Add a block of text."""
        self._blocks.append(block)
        click.echo(block + "\n")
        if self._output is not None:
            self._output.write_text("\n\n".join(self._blocks) + "\n")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Add a table whose first column is text and whose others are figures."""
        lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
        self.text("\n".join(f"| {' | '.join(line)} |" for line in lines))


@click.command()
@click.option("--quick", is_flag=True, help="Two turns of 20 edits; small solves only.")
@click.option("--turns", type=click.IntRange(min=2), help="Turns, the first a warm-up.  [default: 3, quick 2]")
@click.option("--edits-per-turn", type=click.IntRange(min=1), help="Edits in a turn.  [default: 100, quick 20]")
@click.option("--model", default=".cache/gemma-3-270m", show_default=True, help="Folder of the model.")
@click.option("--edits", type=click.Path(path_type=Path), default=Path("../shared/data/counterfact-edit.json"), show_default=True)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Also write the tables to this file.")
@click.option("--child", type=click.Choice(SIDES), hidden=True, help="Measure the memory of one side in this process.")
def main(quick: bool, turns: int | None, edits_per_turn: int | None, model: str, edits: Path, output: Path | None, child: str | None) -> None:
    """Measure whole turns, each fast path alone and the solve alone, on this machine."""
    logging.disable_progress_bar()
    chosen, note = choose_edits(edits)
    workload = Workload(model=model, edits=chosen, num_turns=turns or (2 if quick else 3), edits_per_turn=edits_per_turn or (20 if quick else 100))
    try:
        if child:
            run_child(child, workload)
        else:
            _run(workload, Page(output), note, quick=quick)
    except UltraEditError as error:
        raise click.ClickException(str(error)) from error


def _run(workload: Workload, page: Page, note: str, *, quick: bool) -> None:
    memory = {side: measure_memory(side, workload) for side in SIDES}  # while this process is small
    speeds = matmul_speeds()
    peak = max(speeds.values())
    listed = ", ".join(f"{speed / 1e9:.0f} GFLOP/s with {name}" for name, speed in speeds.items())
    page.text(f"{machine_line()}.\n\nBest float32 matrix multiply: {listed}.")
    if note:
        page.text(note)
    comparison = compare(workload)
    _show_comparison(page, workload, comparison, memory, peak)
    _show_whole_job(page, workload)
    _show_ablation(page, workload)
    _show_scaling(page, workload, quick=quick)
    _show_solves(page, quick=quick)
    name, error = comparison.worst
    if not error < TOLERANCE:
        page.text(f"FAILED: the total shift of {name} differs by {error:.1e}, more than {TOLERANCE:.0e}.")
        sys.exit(1)


def _show_comparison(page: Page, workload: Workload, found: Comparison, memory: dict[str, Memory], peak: float) -> None:
    count = len(found.baseline)
    turns = f"{count} turns" + ("" if count == workload.num_turns else f" ({workload.num_turns} wanted, the file has no more)")
    page.text(
        f"## Whole turns\n\n{turns} of {workload.edits_per_turn} edits of {workload.edits.name} on {Path(workload.model).name} in float32. "
        "Seconds per turn are medians without the first turn; the editor's include the turn's share of the prefix."
    )
    both = {"baseline": found.baseline, "editor": found.editor}
    figures = {side: median(times[1:]) for side, times in both.items()}
    page.table(
        ("", "first turn, s", "turn, s", "edits/s", "times as fast", "model loaded, GB", "peak, GB"),
        [
            (
                side,
                f"{both[side][0]:.2f}",
                f"{figures[side]:.2f}",
                f"{workload.edits_per_turn / figures[side]:.1f}",
                f"{figures['baseline'] / figures[side]:.2f}",
                f"{memory[side].loaded / 1e9:.2f}",
                f"{memory[side].peak / 1e9:.2f}",
            )
            for side in SIDES
        ],
    )
    phases = ", ".join(f"{phase} {median(p[phase] for p in found.phases[1:]):.3f} s" for phase in PHASES)
    name, error = found.worst
    page.text(
        f"- The editor's phases: {phases}.\n"
        f"- Prefix and capture: {median(found.flops[1:]) / 1e9:.0f} GFLOP a turn at {found.capture_speed / 1e9:.0f} GFLOP/s, "
        f"{found.capture_speed / peak:.0%} of the machine's best matrix multiply.\n"
        f"- Both give the same weights: relative error of the total shift at most {error:.1e}, in {name}."
    )


def _show_whole_job(page: Page, workload: Workload) -> None:
    with tempfile.TemporaryDirectory() as folder:
        here, plain = run_here(workload, Path(folder)), run_plainly(workload, Path(folder))
    page.text(
        f"## A whole job\n\n{workload.num_turns * workload.edits_per_turn} edits with their evaluation before and after, and the model saved; "
        "no texts, no perplexity. Plainly: the model's own forward over groups of padded sequences, logits at all positions, and the "
        "baseline's turns. What is left of the whole, here: the start of the process, reading the edits, watching, checkpoints and plots."
    )
    rows = [(phase, plain.seconds[phase], here.seconds[phase]) for phase in (*JOB_PHASES, "total")]
    page.table(("phase", "plainly, s", "here, s", "times as fast"), [(name, f"{p:.1f}", f"{h:.1f}", f"{p / h:.1f}") for name, p, h in rows])
    both = ((name.replace("_", " "), plain.metrics[name], here.metrics[name]) for name in here.metrics)
    page.text("Metrics, plainly and here: " + ", ".join(f"{name} {p:.4f} and {h:.4f}" for name, p, h in both) + ".")


def _show_ablation(page: Page, workload: Workload) -> None:
    page.text(
        "## Fast paths\n\nEach fast path switched off alone: median seconds per turn without the first, of which the turn's share of the "
        "prefix, and the largest relative difference of a shift from the one with all fast paths on."
    )
    editor = workload.load_editor()
    results = run_ablation(editor, workload.turns(editor))
    page.table(
        ("switched off", "turn, s", "of which prefix, s", "times as slow", "difference"),
        [(r.name, f"{r.seconds:.2f}", f"{r.prefix_seconds:.2f}", f"{r.seconds / results[0].seconds:.2f}", f"{r.difference:.0e}") for r in results],
    )


def _show_scaling(page: Page, workload: Workload, *, quick: bool) -> None:
    page.text(
        f"## Scaling\n\nTurns of the editor alone, each with its own prefix: of several sizes on {Path(workload.model).name}; and of "
        f"{workload.edits_per_turn} edits on random Llamas of several depths, 256 wide, of which the last quarter of the layers is edited. "
        "Replicas: `python -m tests.benchmarks.replicas`."
    )
    edits = over_edits(workload, EDITS_PER_TURN[: 2 if quick else None])
    depths = over_depth(workload, DEPTHS[: 2 if quick else None])
    for name, points in (("edits in a turn", edits), ("layers", depths)):
        page.table((name, "turn, s", "edits/s"), [(f"{p.size:,}", f"{p.seconds:.3f}", f"{p.edits / p.seconds:.1f}") for p in points])


def _show_solves(page: Page, *, quick: bool) -> None:
    page.text(
        f"## The solve alone\n\nOne module, {NUM_ROWS} random rows, float32, the shift added to the weight. The baseline solves a "
        "d_in x d_in system, the editor an n x n one."
    )
    results = list(time_solves(quick=quick))
    page.table(
        ("model", "module", "d_in", "d_out", "baseline, s", "editor, s", "times as fast", "difference"),
        [
            (
                r.shape.model,
                r.shape.module,
                str(r.shape.d_in),
                str(r.shape.d_out),
                f"{r.baseline:.2f}",
                f"{r.ours:.2f}",
                f"{r.baseline / r.ours:.0f}",
                f"{r.difference:.0e}",
            )
            for r in results
        ],
    )


if __name__ == "__main__":
    main()
