"""``ultraedit tune``: modules and a learning rate for a model that nobody has measured."""

from typing import TYPE_CHECKING, Any

from editing.errors import InputError
from orchestrator.cli.console import messages, say, screen
from orchestrator.cli.help import command
from orchestrator.cli.libraries import ready_libraries
from orchestrator.cli.options import (
    COUNT,
    FOLDER,
    FROM_ZERO,
    INPUT,
    NAMED_MODEL,
    device_option,
    dtype_option,
    format_option,
    method,
    model_and_data,
    search,
    tracking,
)
from orchestrator.cli.tables import Column, Sheet

if TYPE_CHECKING:
    from orchestrator.tune.search import TrialResult

_SHOWN = 8
"""Candidates of a rung that are shown; the file of measurements has all."""


@command("tune")
@model_and_data("--model", **NAMED_MODEL, required=True, help="Folder or Hugging Face Hub id of the model.")
@model_and_data("--edits", **INPUT, required=True, help="Edits like those to come, with their probes, as for ultraedit edit.")
@model_and_data("--output", **FOLDER, required=True, help="Folder for preset.yaml and measurements.jsonl.")
@format_option
@model_and_data("--overwrite", is_flag=True, help="Discard the measurements in --output and begin again.")
@search("--sample", **COUNT, default=100, show_default=True, help="Edits that are drawn.")
@search("--rungs", **COUNT, default=3, show_default=True, help="Rounds of the search. The best third goes on to the next, with twice the edits.")
@search(
    "--families",
    metavar="NAMES",
    help="Module families, comma separated: mlp-out, mlp-in, attention-out, or names such as q_proj+v_proj. [default: all that the model has]",
)
@search("--strengths", metavar="X,...", help="Relative shifts of one turn to try. [default: 0.03,0.06,0.12,0.24]")
@search("--refine", is_flag=True, help="In the last round, also try more passes, a preserving ridge and edits at the subjects.")
@search("--objective", metavar="NAME=X,...", help="Weights of the harmonic mean. [default: efficacy=1,generalization=1,retention=1]")
@search("--seed", **FROM_ZERO, default=0, show_default=True, help="Seed of the sample.")
@method("--edits-per-turn", **COUNT, default=100, show_default=True, help="Edits that share one shift of each module, as later in ultraedit edit.")
@device_option
@dtype_option
@tracking("--tracking-uri", metavar="URI", default="sqlite:///mlflow.db", show_default=True, help="MLflow tracking URI, or none.")
@tracking("--experiment", metavar="NAME", default="ultraedit", show_default=True, help="MLflow experiment.")
def tune_command(families: str | None, strengths: str | None, objective: str | None, tracking_uri: str, experiment: str, **options: Any) -> None:
    """Find modules and a learning rate by measurement, and write them as a preset for edit --preset FILE.

    Run the same command again to continue a search that was stopped; nothing is measured twice. The model's folder is not changed.
    """
    ready_libraries()
    from orchestrator.progress import Progress
    from orchestrator.tracking import make_tracker
    from orchestrator.tune.pipeline import TuneConfig, tune
    from orchestrator.tune.search import STRENGTHS, Objective

    config = TuneConfig(
        families=tuple(part.strip() for part in (families or "").split(",") if part.strip()),
        strengths=_numbers(strengths) if strengths is not None else STRENGTHS,
        objective=Objective.parse(objective or ""),
        **options,
    )
    tuned = tune(config, make_tracker(tracking_uri, experiment), Progress(messages()))
    for rung in tuned.table:
        screen().print(_table(rung))
    again = "" if tuned.measured else "; every measurement was there already"
    say(f"{tuned.reason}\npreset    {tuned.preset}{again}\nuse       ultraedit edit --model {config.model} --preset {tuned.preset} ...")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"strengths: expected numbers like 0.01,0.02, found {text!r}") from None


def _table(rung: "list[TrialResult]") -> Sheet:
    more = f", the best {_SHOWN} of {len(rung)}" if len(rung) > _SHOWN else ""
    numbers = (Column(name, right=True) for name in ("rate", "efficacy", "generalization", "retention", "score"))
    table = Sheet("candidate", *numbers, title=f"{rung[0].edits} edits{more}")
    for found in rung[:_SHOWN]:
        metrics = (found.metrics.get(name) for name in ("efficacy", "generalization", "locality_retention"))
        values = ("" if value is None else f"{value:.3f}" for value in metrics)
        table.add(found.candidate.name, f"{found.learning_rate:g}", *values, f"{found.score:.3f}")
    return table
