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
    FILE,
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
def evaluate(output: Path | None, **options: Any) -> None:
    """Measure any model on a file of edits."""
    if output and (output.is_dir() or not output.parent.is_dir()):
        raise InputError(f"output: {output} cannot be written; expected the name of a file in an existing folder")
    ready_libraries()
    from orchestrator.cli.run_tables import metrics_table
    from orchestrator.evaluate_model import measure_model
    from orchestrator.progress import Progress

    metrics = measure_model(**options, progress=Progress(messages()))
    if output:
        output.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    screen().print(metrics_table(metrics))
