"""What the commands' options share: groups in the help, kinds of values, names.

Names and defaults stand here and in help texts as they are, since asking the modules that own them takes seconds. A test
compares them.
"""

from functools import partial
from pathlib import Path
from typing import Any

import rich_click as click

model_and_data = partial(click.option, panel="Model and data")
method = partial(click.option, panel="Method")
memory = partial(click.option, panel="Memory and speed")
cluster = partial(click.option, panel="Cluster")
evaluation = partial(click.option, panel="Evaluation")
safety = partial(click.option, panel="Safety and resuming")
tracking = partial(click.option, panel="Tracking")
search = partial(click.option, panel="Search")

WHOLE: dict[str, Any] = {"type": int, "metavar": "N"}
COUNT: dict[str, Any] = {"type": click.IntRange(min=1), "metavar": "N"}
FROM_ZERO: dict[str, Any] = {"type": click.IntRange(min=0), "metavar": "N"}
NUMBER: dict[str, Any] = {"type": float, "metavar": "X"}
POSITIVE: dict[str, Any] = {"type": click.FloatRange(min=0, min_open=True), "metavar": "X"}
NAMED_MODEL: dict[str, Any] = {"type": click.Path(), "metavar": "FOLDER|ID"}
FILE: dict[str, Any] = {"type": click.Path(path_type=Path), "metavar": "FILE"}
FOLDER: dict[str, Any] = {"type": click.Path(path_type=Path), "metavar": "FOLDER"}
INPUT: dict[str, Any] = {"type": click.Path(), "metavar": "FILE|FOLDER"}
NAME_OR_FILE: dict[str, Any] = {"type": click.Path(), "metavar": "NAME|FILE"}


class Rank(click.ParamType[int | None]):
    """A rank, or ``auto``, which is ``None``."""

    name = "rank"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int | None:
        if value is None or value == "auto":
            return None
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"expected auto or a whole number of at least 1, found {value!r}", param, context)
        return int(value)


RANK: dict[str, Any] = {"type": Rank(), "metavar": "N|auto"}

FORMATS = (
    *("rippleedits", "bizsre", "bizsre-zh", "mquake", "cknowedit", "knowedit", "counterfact", "mlake", "unke"),
    *("wikibigedit", "fever", "ultraeditbench", "zsre", "qaedit", "jsonl"),
)
DTYPES = ("auto", "float32", "bfloat16")
MOMENT_RULES = ("published", "exact")
JOINS = ("raw", "published", "none")
PRESERVE_FORMS = ("off", "auto", "exact", "sketch")
FRAMINGS = ("raw", "question", "chat", "chat-system", "complete")
ANSWER_ENDS = ("none", "chat", "stop")
PREFIX_DTYPES = ("same", "bfloat16")
SUBJECT_TARGETS = ("gradient", "solved")
EXPORT_FORMS = ("peft", "checkpoint", "delta", "gguf", "gguf-lora")
SAVES = ("full", "delta", "peft")
ON_COLLAPSE = ("warn", "stop", "rollback")

DTYPE_HELP = "Precision of the weights: float32, bfloat16, or auto for the checkpoint's."
format_option = model_and_data(
    "--format",
    metavar="NAME",
    type=click.Choice(("auto", *FORMATS)),
    default="auto",
    show_default=True,
    help=f"Record format of the edits: auto, {', '.join(FORMATS)}.",
)
limit_option = model_and_data("--limit", **COUNT, help="Use the first N usable records only.")
device_option = memory("--device", metavar="NAME", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
dtype_option = memory("--dtype", metavar="NAME", type=click.Choice(DTYPES), default="auto", show_default=True, help=DTYPE_HELP)

run_dir = click.argument("run_dir", metavar="RUN_DIR", type=click.Path(path_type=Path))
"""The folder of a finished run."""
