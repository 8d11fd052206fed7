"""``ultraedit tune``: modules and a learning rate for a model that nobody has measured."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from editing import InputError
from editing.datasets import FORMATS
from orchestrator.progress import Progress
from orchestrator.tune.search import STRENGTHS, Objective, TrialResult

_SHOWN = 8
"""Candidates of a rung that are shown; the file of measurements has all."""


@click.command("tune")
@click.option("--model", required=True, help="Folder or Hugging Face Hub id of the model.")
@click.option("--edits", required=True, help="Edits like those to come, with their probes: a file or a folder of parts, as for edit.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder for preset.yaml and measurements.jsonl.")
@click.option("--format", type=click.Choice(["auto", *FORMATS]), default="auto", help="Record format of the edits.")
@click.option("--sample", type=click.IntRange(min=1), default=100, show_default=True, help="Edits that are drawn.")
@click.option("--rungs", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds; the best third goes on, to twice the edits.")
@click.option("--families", help="Module families, comma separated: mlp-out, mlp-in, attention-out, or as q_proj+v_proj.  [default: all there are]")
@click.option("--strengths", help=f"Relative shifts of one turn to try.  [default: {','.join(f'{s:g}' for s in STRENGTHS)}]")
@click.option("--refine", is_flag=True, help="In the last rung also try further passes, a preserving ridge and edits at the subjects.")
@click.option("--objective", help="Weights of the harmonic mean.  [default: efficacy=1,generalization=1,retention=1]")
@click.option("--edits-per-turn", type=click.IntRange(min=1), default=100, show_default=True, help="As it will be for edit.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the sample.")
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", help="Precision of the weights.  [default: auto]")
@click.option("--tracking-uri", default="sqlite:///mlflow.db", show_default=True, help="MLflow tracking URI, or none.")
@click.option("--experiment", default="ultraedit", show_default=True, help="MLflow experiment.")
@click.option("--overwrite", is_flag=True, help="Measure anew what is in --output already.")
def tune_command(families: str | None, strengths: str | None, objective: str | None, tracking_uri: str, experiment: str, **options: Any) -> None:
    """Find modules and a learning rate by measurement, and write them as a preset for edit --preset FILE.

    The same command again goes on with a search that was stopped, and measures nothing twice. The model's folder is not changed.
    """
    from orchestrator.tracking import make_tracker
    from orchestrator.tune.pipeline import TuneConfig, tune

    config = TuneConfig(
        families=tuple(part.strip() for part in (families or "").split(",") if part.strip()),
        strengths=_numbers(strengths) if strengths is not None else STRENGTHS,
        objective=Objective.parse(objective or ""),
        **options,
    )
    tuned = tune(config, make_tracker(tracking_uri, experiment), Progress(Console(stderr=True)))
    screen = Console(markup=False, emoji=False)
    for rung in tuned.table:
        screen.print(_table(rung))
    screen.print(tuned.reason, soft_wrap=True)
    again = "" if tuned.measured else "; every measurement was there already"
    screen.print(f"preset    {tuned.preset}{again}\nuse       ultraedit edit --model {config.model} --preset {tuned.preset} ...", soft_wrap=True)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"strengths: expected numbers like 0.01,0.02, found {text!r}") from None


def _table(rung: list[TrialResult]) -> Table:
    more = f", the best {_SHOWN} of {len(rung)}" if len(rung) > _SHOWN else ""
    table = Table(title=f"{rung[0].edits} edits{more}", title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("candidate", no_wrap=True)
    for name in ("rate", "efficacy", "generalization", "retention", "score"):
        table.add_column(name, justify="right")
    for found in rung[:_SHOWN]:
        metrics = (found.metrics.get(name) for name in ("efficacy", "generalization", "locality_retention"))
        values = ("" if value is None else f"{value:.3f}" for value in metrics)
        table.add_row(found.candidate.name, f"{found.learning_rate:g}", *values, f"{found.score:.3f}")
    return table
