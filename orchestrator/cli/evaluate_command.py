"""``ultraedit evaluate``: the metrics of any model, edited here or not."""

import json
from pathlib import Path
from typing import Any

import rich_click as click

from editing.errors import InputError
from orchestrator.cli.console import messages, screen
from orchestrator.cli.help import command
from orchestrator.cli.libraries import ready_libraries
from orchestrator.cli.options import (
    COUNT,
    FILE,
    FOLDER,
    FRAMINGS,
    FROM_ZERO,
    INPUT,
    JOINS,
    NAME_OR_FILE,
    NAMED_MODEL,
    device_option,
    dtype_option,
    evaluation,
    format_option,
    limit_option,
    memory,
    method,
    model_and_data,
    tracking,
)


@command("evaluate")
@model_and_data("--model", **NAMED_MODEL, required=True, help="Folder or Hub id of the model to measure.")
@model_and_data("--edits", **INPUT, required=True, help="The edits and their probes: a file or a folder of files, as for ultraedit edit.")
@model_and_data("--base", **NAMED_MODEL, help="The unedited model; gives locality retention and the metrics before.")
@format_option
@limit_option
@model_and_data("--output", **FILE, help="Also write the metrics to this JSON file.")
@evaluation("--generate", **FROM_ZERO, default=50, show_default=True, help="Edits for which text is generated; a random sample.")
@evaluation(
    "--perplexity-text",
    **NAME_OR_FILE,
    default="held-out",
    show_default=True,
    help="Text whose perplexity is measured: held-out, none or a text file.",
)
@evaluation("--seed", **FROM_ZERO, default=0, show_default=True, help="Seed of the sample.")
@evaluation("--tasks", metavar="NAMES", help="Also tasks of lm-evaluation-harness, such as hellaswag,arc_easy; needs the extra [tasks].")
@evaluation("--task-path", **FOLDER, help="Folder of further tasks, each a YAML file.")
@evaluation("--task-limit", **COUNT, help="Questions of each task. [default: all]")
@method(
    "--join", metavar="RULE", type=click.Choice(JOINS), default="raw", show_default=True, help="How prompt and answer meet: raw, published or none."
)
@method(
    "--framing",
    metavar="NAME",
    default="raw",
    show_default=True,
    help=f"How every prompt is asked: {', '.join(FRAMINGS)}, or a text with {{prompt}} in it.",
)
@device_option
@dtype_option
@memory("--device-memory", metavar="SIZE", help="Memory to use, such as 6GiB, or auto, as for ultraedit edit.")
@tracking("--tracking-uri", metavar="URI", default="none", show_default=True, help="MLflow tracking URI, such as sqlite:///mlflow.db, or none.")
@tracking("--experiment", metavar="NAME", default="ultraedit", show_default=True, help="MLflow experiment.")
def evaluate(
    output: Path | None, tasks: str | None, task_path: Path | None, task_limit: int | None, tracking_uri: str, experiment: str, **options: Any
) -> None:
    """Measure any model on a file of edits."""
    if output and (output.is_dir() or not output.parent.is_dir()):
        raise InputError(f"output: {output} cannot be written; expected the name of a file in an existing folder")
    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if not names and (task_path or task_limit):
        raise InputError("task_path and task_limit are for tasks; name them by --tasks")
    ready_libraries()
    from orchestrator.cli.run_tables import metrics_table, tasks_table
    from orchestrator.evaluate_model import measure_model
    from orchestrator.progress import Progress
    from orchestrator.tasks import Tasks
    from orchestrator.tracking import make_tracker

    tracker = make_tracker(tracking_uri, experiment)
    chosen = Tasks(names, folder=task_path, limit=task_limit) if names else None
    metrics = measure_model(**options, tasks=chosen, progress=Progress(messages()))
    if output:
        output.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    tracker.start(f"evaluate {Path(options['model']).name}", {**options, "tasks": tasks, "task_limit": task_limit})
    tracker.log({name: value for name, value in metrics.items() if isinstance(value, (int, float))}, step=0)
    tracker.close("FINISHED")
    screen().print(metrics_table(metrics))
    if names:
        screen().print(tasks_table(metrics))
