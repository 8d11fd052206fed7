"""``ultraedit edit``: a model, edited with the facts of a file.

Every option but ``--config`` and ``--resume`` is a field of :class:`orchestrator.run.run_config.RunConfig`. One that is
not given is ``None`` here, so that a YAML file may give it.
"""

from pathlib import Path
from typing import Any

import rich_click as click

from orchestrator.cli.help import command
from orchestrator.cli.libraries import ready_libraries
from orchestrator.cli.options import (
    ANSWER_ENDS,
    COUNT,
    DTYPE_HELP,
    DTYPES,
    FILE,
    FORMATS,
    FRAMINGS,
    INPUT,
    JOINS,
    MOMENT_RULES,
    NAME_OR_FILE,
    NAMED_MODEL,
    NUMBER,
    ON_COLLAPSE,
    PREFIX_DTYPES,
    PRESERVE_FORMS,
    SAVES,
    SUBJECT_TARGETS,
    WHOLE,
    cluster,
    evaluation,
    memory,
    method,
    model_and_data,
    safety,
    tracking,
)


@command("edit")
@model_and_data("--model", **NAMED_MODEL, help="Folder or Hugging Face Hub id of the model.")
@model_and_data(
    "--edits",
    **INPUT,
    help="The edits: JSON lines, a JSON array, CSV, TSV, Parquet or Arrow, also gzip or zstd; a folder of them; - for standard input.",
)
@model_and_data("--output", type=click.Path(), metavar="FOLDER", help="Folder for the edited model and the results.")
@model_and_data(
    "--format",
    metavar="NAME",
    type=click.Choice(("auto", *FORMATS)),
    help=f"Record format of the edits: auto, {', '.join(FORMATS)}. [default: auto]",
)
@model_and_data("--limit", **COUNT, help="Use the first N usable records only.")
@model_and_data(
    "--strict", is_flag=True, default=None, help="Stop at the first unusable record instead of setting it aside, and at fields that are not read."
)
@model_and_data(
    "--save", type=click.Choice(SAVES), help="The whole edited model, the edited weights alone (delta), or a LoRA adapter (peft). [default: full]"
)
@model_and_data("--config", "config_file", **FILE, help="YAML file with any of these options. The command line wins.")
@method(
    "--preset",
    metavar="NAME|FILE",
    help="Settings by name: MODEL, MODEL/VARIANT, a variant such as published, or a YAML file. [default: the model's own preset]",
)
@method(
    "--dataset",
    metavar="NAME",
    type=click.Choice(FORMATS),
    help="Data set whose modules the preset gives, by the name of its format. [default: inferred from the edits]",
)
@method("--modules", metavar="NAMES", help="Modules to edit, comma separated; a.{2..5}.{x,y} means eight. [default: the preset's]")
@method("--learning-rate", **NUMBER, help="Scale of the targets. [default: the preset's]")
@method("--strength", **NUMBER, help="In its place: how far the first turn shifts the weights, as a share of their norm.")
@method(
    "--strength-goal",
    **NUMBER,
    help="Raise it until this share of the first turn's questions is answered right; 0.7 where no preset fits. [default: the preset's, else 0]",
)
@method("--edits-per-turn", **WHOLE, help="Edits that share one shift of each module. [default: 100]")
@method("--group-size", **WHOLE, help="Edits over whose answer tokens the loss is averaged. [default: 10]")
@method(
    "--moments",
    metavar="RULE",
    type=click.Choice(MOMENT_RULES),
    help="Rule of the lifelong moments: published or exact. [default: the preset's, else published]",
)
@method(
    "--small-turns/--no-small-turns",
    default=None,
    help="Make turns of few edits hold: usual scales from shipped statements, and more passes. [default: the preset's, else no-small-turns]",
)
@method("--ridge", **NUMBER, help="Strength of the ridge in the solve. [default: the preset's, else 1]")
@method("--passes", **WHOLE, help="Most shifts in one turn. [default: the preset's, else 1]")
@method("--margin", **NUMBER, help="Lead of an answer, in nats, that needs no further pass. [default: the preset's, else 0]")
@method(
    "--preserve",
    metavar="FORM",
    type=click.Choice(PRESERVE_FORMS),
    help="Ridge against change on all tokens seen: off, auto, exact or sketch. [default: the preset's, else off]",
)
@method("--preserve-weight", **NUMBER, help="Weight of that ridge. [default: the preset's, else 1000]")
@method("--preserve-rank", **WHOLE, help="Directions of its sketch. [default: the preset's, else 256]")
@method(
    "--preserve-text",
    **NAME_OR_FILE,
    help="Text on which it also prevents change: none, everyday or a text file. [default: the preset's, else none]",
)
@method(
    "--preserve-framed/--no-preserve-framed",
    default=None,
    help="Ask its sentences in the framings too, and prevent change there. [default: the preset's, else preserve-framed]",
)
@method(
    "--preserve-neighbours",
    **WHOLE,
    help="Ask each edit's prompt about N other subjects, and prevent change there. [default: the preset's, else 0]",
)
@method(
    "--preserve-alike/--no-preserve-alike",
    default=None,
    help="Choose subjects that are like the edit's own, not any. [default: the preset's, else no-preserve-alike]",
)
@method(
    "--preserve-outputs",
    **NUMBER,
    help="From 0 to below 1: prevent it more where that text depends on an output, and less where not. [default: the preset's, else 0]",
)
@method("--whiten/--no-whiten", default=None, help="Whiten value gradients as a whole. [default: the preset's, else no-whiten]")
@method("--subject-modules", metavar="NAMES", help="Modules to edit at the last token of the subject, or none. [default: the preset's, else none]")
@method(
    "--find-subjects/--no-find-subjects",
    default=None,
    help="Find the subject of an edit that comes without one: a quotation or name in its prompt. [default: the preset's, else no-find-subjects]",
)
@method("--subject-scale", **NUMBER, help="Scale of their targets, times the learning rate. [default: the preset's, else 0.1]")
@method(
    "--subject-targets",
    metavar="KIND",
    type=click.Choice(SUBJECT_TARGETS),
    help="What they aim at: gradient for a step along it, or solved for a value that gives the answer. [default: the preset's, else gradient]",
)
@method("--subject-steps", **WHOLE, help="Most steps in which a target is solved. [default: the preset's, else 10]")
@method("--subject-margin", **NUMBER, help="Lead of an answer, in nats, at which its target is solved. [default: the preset's, else 1]")
@method("--subject-bound", **NUMBER, help="Largest solved target, as a share of the module's outputs. [default: the preset's, else 1]")
@method("--subject-contexts", **WHOLE, help="Sentences before the prompt, each a further form of the edit. [default: the preset's, else 0]")
@method("--subject-weight", **NUMBER, help="Weight of the ridge where targets are solved. [default: the preset's, else 5000]")
@method(
    "--join",
    metavar="RULE",
    type=click.Choice(JOINS),
    help="How prompt and answer meet: raw, published or none. [default: published with that preset, else raw]",
)
@method(
    "--framings",
    metavar="NAMES",
    help=f"Ways to write each edit, comma separated: {', '.join(FRAMINGS)}, or a YAML file of texts and messages with {{prompt}} in them; auto is "
    "raw, and chat where the model has a template. [default: the preset's, else auto]",
)
@method(
    "--answer-end",
    metavar="END",
    type=click.Choice(ANSWER_ENDS),
    help="Where to write what ends an answer too, so that the model stops: none, chat, or stop, which is a full stop in other texts as well. "
    "[default: the preset's, else chat]",
)
@method("--warm-up", **WHOLE, help="Update the moments with the first N edits before the first turn. [default: 0]")
@memory("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N. [default: auto]")
@memory("--dtype", metavar="NAME", type=click.Choice(DTYPES), help=f"{DTYPE_HELP} [default: auto]")
@memory(
    "--device-memory",
    metavar="SIZE",
    help="Memory to use, such as 6GiB, or auto. Layers that do not fit are read from disk when needed. [default: hold the whole model]",
)
@memory("--lookahead", **WHOLE, help="Turns that go through the layers below the edited ones together. [default: 4, or as memory allows]")
@memory("--batch-tokens", **WHOLE, help="Tokens in one batch, padding included. [default: 2048]")
@memory(
    "--prefix-dtype",
    metavar="NAME",
    type=click.Choice(PREFIX_DTYPES),
    help="Precision of products in the layers below the edited ones: same, or bfloat16, which may be faster. [default: the preset's, else same]",
)
@cluster("--shards", **WHOLE, help="Workers that one copy of the model is cut over. [default: 1]")
@cluster("--replicas", **WHOLE, help="Copies of the model; each captures a share of every turn. [default: 1]")
@cluster("--ray-address", metavar="ADDRESS", help="local, auto or ray://HOST:PORT. [default: auto in a Ray job, else local]")
@cluster(
    "--resources-per-shard",
    metavar="NAME=X,...",
    help="Resources of one shard, such as gpu=1,cpu=4. [default: one GPU, else one CPU]",
)
@cluster("--placement-timeout", **NUMBER, help="Seconds to wait for a cluster to grow. [default: 0]")
@cluster("--worker-timeout", **NUMBER, help="Seconds after which a worker that does not answer counts as lost. [default: 1800]")
@evaluation("--eval/--no-eval", "eval", default=None, help="Evaluate the edits at the end. [default: eval]")
@evaluation("--eval-sample", **WHOLE, help="Evaluate a random sample of N edits. [default: all]")
@evaluation("--eval-at", metavar="N,...", help="Also evaluate after these numbers of edits, comma separated.")
@evaluation("--generate", **WHOLE, help="Edits for which text is generated before and after. [default: 50]")
@evaluation("--perplexity-text", **NAME_OR_FILE, help="Text whose perplexity is measured: held-out, none or a text file. [default: held-out]")
@evaluation("--seed", **WHOLE, help="Seed of the samples. [default: 0]")
@safety("--watch-every", **WHOLE, help="Turns from one measurement of the model's health to the next. [default: 10]")
@safety("--on-collapse", metavar="ACTION", type=click.Choice(ON_COLLAPSE), help="When a limit is passed: warn, stop or rollback. [default: warn]")
@safety("--max-weight-growth", **NUMBER, help="Limit: growth of an edited weight's norm, as a share. [default: 0.3]")
@safety("--min-probe-retention", **NUMBER, help="Limit: share of fixed probes that keep their answer. [default: 0.5]")
@safety("--max-perplexity-growth", **NUMBER, help="Limit: perplexity of a fixed text, as a multiple of the unedited model's. [default: 2]")
@safety("--checkpoint-every", **WHOLE, help="Turns from one checkpoint to the next; 0 writes one at the end only. [default: 10]")
@safety("--keep", **WHOLE, help="Number of newest checkpoints to keep. [default: 2]")
@safety(
    "--resume",
    metavar="auto|RUN_DIR",
    type=click.Path(),
    help="auto: continue the unfinished run in --output, if there is one. RUN_DIR: continue that run, with its own options.",
)
@safety("--overwrite", is_flag=True, default=None, help="Replace an earlier run in the output folder.")
@tracking("--tracking-uri", metavar="URI", help="MLflow tracking URI, or none. [default: sqlite:///mlflow.db]")
@tracking("--experiment", metavar="NAME", help="MLflow experiment. [default: ultraedit]")
def edit(config_file: Path | None, resume: str | None, **flags: Any) -> None:
    """Edit a model with the facts of a file.

    With --resume RUN_DIR and another --edits, the new facts are appended to a finished run.
    """
    ready_libraries()
    from orchestrator.cli.runs import run_edit
    from orchestrator.run.resume import stored_config
    from orchestrator.run.run_config import RunConfig

    if resume is not None and resume != "auto":
        given = {name: value for name, value in flags.items() if value is not None}
        flags = {**stored_config(Path(resume), given, can_give=("model", "preset", "edits")), "output": resume}
    run_edit(RunConfig.build(flags, config_file), resume=resume is not None)
