"""The command line: ``ultraedit edit``, ``evaluate``, ``show``, ``rollback`` and others. Every expected failure is one line and a non-zero exit."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import torch
from rich.console import Console

from editing import InputError, OutOfMemory, UltraEditError
from editing.datasets import FORMATS
from editing.errors import ran_out_of_memory
from editing.method.preserve import PreserveForm
from editing.model.joining import Join
from orchestrator.cli.data_commands import data
from orchestrator.cli.plan_command import plan_command
from orchestrator.cli.run_tables import metrics_table, show_diff, show_history, show_run
from orchestrator.cli.tune_command import tune_command
from orchestrator.progress import Progress
from orchestrator.run.resume import stored_config, with_stored_join
from orchestrator.run.run_config import OnCollapse, RunConfig, Save

if TYPE_CHECKING:
    from orchestrator.run.coordinator import Coordinator

_FORMATS = click.Choice(["auto", *FORMATS])
_DTYPES = click.Choice(["auto", "float32", "bfloat16"])


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_data_options = _options(
    click.option("--format", type=_FORMATS, help="Record format of the edits.  [default: auto]"),
    click.option("--limit", type=click.IntRange(min=1), help="Use the first N usable records only."),
    click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]"),
    click.option("--dtype", type=_DTYPES, help="Precision of the weights; auto keeps the checkpoint's.  [default: auto]"),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ultraedit-orchestrator")
def cli() -> None:
    """Write facts into a language model's weights, without training (UltraEdit, arXiv 2505.14679)."""


@cli.command()
@click.option("--model", help="Folder or Hugging Face Hub id of the model.")
@click.option("--edits", help="The edits: JSON lines, JSON array or Parquet, plain, gzip or zstd; or a folder of parts.")
@click.option("--output", help="Folder for the edited model and the results.")
@_data_options
@click.option("--preset", help="Settings by name, as MODEL, MODEL/VARIANT, a variant such as published, or a YAML file; by default the model's own.")
@click.option("--dataset", type=click.Choice(sorted(FORMATS)), help="Data set whose modules a preset gives.  [default: told by the edits]")
@click.option("--modules", help="Modules to edit, comma separated; a.{2..5}.{x,y} stands for eight.")
@click.option("--learning-rate", type=float, help="Scale of the targets.")
@click.option("--edits-per-turn", type=int, help="Edits that share one shift per module.  [default: 100]")
@click.option("--group-size", type=int, help="Edits over whose answer tokens the loss is averaged.  [default: 10]")
@click.option("--device-memory", help="Memory that may be used, as 6GiB, or auto; layers that do not fit are read from disk as needed.")
@click.option("--lookahead", type=int, help="Coming turns that go through the frozen layers in one pass.  [default: 4, or as the memory allows]")
@click.option("--moments", type=click.Choice(["published", "exact"]), help="Rule of the lifelong moments.  [default: the preset's, else published]")
@click.option("--ridge", type=float, help="Strength of the ridge in the solve.  [default: the preset's, else 1]")
@click.option("--passes", type=int, help="Shifts of one turn at the most.  [default: the preset's, else 1]")
@click.option("--margin", type=float, help="Nats by which an answer must lead to need no further pass.  [default: the preset's, else 0]")
@click.option("--preserve", type=click.Choice(get_args(PreserveForm)), help="Hold back change on all tokens seen.  [default: the preset's, else off]")
@click.option("--preserve-weight", type=float, help="Weight of that beside the ridge.  [default: the preset's, else 1000]")
@click.option("--preserve-rank", type=int, help="Directions of its sketch.  [default: the preset's, else 256]")
@click.option("--preserve-text", help="Text that it holds too: none, everyday or a text file.  [default: the preset's, else none]")
@click.option("--whiten/--no-whiten", default=None, help="Whiten value gradients as a whole.  [default: the preset's, else no-whiten]")
@click.option("--subject-modules", help="Modules to edit where the subject ends in the prompt, or none.  [default: the preset's, else none]")
@click.option("--subject-scale", type=float, help="Scale of their targets, times the learning rate.  [default: the preset's, else 0.1]")
@click.option("--join", type=click.Choice(get_args(Join)), help="How prompt and answer meet.  [default: published for that preset, else raw]")
@click.option("--warm-up", type=int, help="Feed the moments with the first N edits before the first is made.  [default: 0]")
@click.option("--batch-tokens", type=int, help="Padded tokens in one physical batch.  [default: 2048]")
@click.option("--save", type=click.Choice(get_args(Save)), help="The whole edited model, or the edited weights alone.  [default: full]")
@click.option("--tracking-uri", help="MLflow tracking URI, or none.  [default: sqlite:///mlflow.db]")
@click.option("--experiment", help="MLflow experiment.  [default: ultraedit]")
@click.option("--eval/--no-eval", "eval", default=None, help="Evaluate the edits at the end.  [default: eval]")
@click.option("--eval-sample", type=int, help="Evaluate a seeded sample of so many edits instead of all.")
@click.option("--eval-at", help="Numbers of edits asked for at which to evaluate too, comma separated.")
@click.option("--watch-every", type=int, help="Turns between two measurements of the model's health.  [default: 10]")
@click.option("--on-collapse", type=click.Choice(get_args(OnCollapse)), help="What to do when a limit is passed.  [default: warn]")
@click.option("--max-weight-growth", type=float, help="Limit: growth of an edited weight's norm, as a share.  [default: 0.3]")
@click.option("--min-probe-retention", type=float, help="Limit: share of fixed probes that keep their answer.  [default: 0.5]")
@click.option("--max-perplexity-growth", type=float, help="Limit: perplexity of a fixed text over the unedited model's.  [default: 2]")
@click.option("--generate", type=int, help="Edits for which text is generated before and after.  [default: 50]")
@click.option("--seed", type=int, help="Seed of the samples.  [default: 0]")
@click.option("--strict", is_flag=True, default=None, help="Stop at the first bad record instead of setting it aside.")
@click.option("--overwrite", is_flag=True, default=None, help="Replace an earlier run in the output folder.")
@click.option("--shards", type=int, help="Actors that one copy of the model is cut into.  [default: 1]")
@click.option("--replicas", type=int, help="Copies of the model, each capturing a share of every turn.  [default: 1]")
@click.option("--ray-address", help="local, auto or ray://HOST:PORT.  [default: auto in a Ray job, else local]")
@click.option("--resources-per-shard", help="As gpu=1,cpu=4.  [default: one GPU where there are GPUs, else one CPU]")
@click.option("--placement-timeout", type=float, help="Seconds to wait for a cluster that grows.  [default: 0]")
@click.option("--worker-timeout", type=float, help="Seconds after which a worker that does not answer counts as lost.  [default: 1800]")
@click.option("--checkpoint-every", type=int, help="Turns between two checkpoints; 0 writes one at the end only.  [default: 10]")
@click.option("--keep", type=int, help="Newest checkpoints that are kept.  [default: 2]")
@click.option("--resume", help="auto: go on with an unfinished run in --output, if there is one. RUN_DIR: that run, with its own options.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file with any of these options; flags win.")
def edit(config_file: Path | None, resume: str | None, **flags: Any) -> None:
    """Edit a model with the facts of a file.

    With --resume RUN_DIR and another --edits, the new facts are appended to a finished run.
    """
    if resume is not None and resume != "auto":
        stored = stored_config(Path(resume))
        flags = {**stored, **{name: value for name, value in flags.items() if value is not None}, "output": resume}
    run_edit(RunConfig.build(flags, config_file), resume=resume is not None)


@cli.command()
@click.option("--model", required=True, help="Folder or Hub id of the model to measure.")
@click.option("--edits", required=True, help="The edits and their probes: a file or a folder of parts, as for edit.")
@click.option("--base", help="The unedited model; gives locality retention and the metrics before.")
@_data_options
@click.option("--device-memory", help="Memory that may be used, as for edit.")
@click.option("--generate", type=click.IntRange(min=0), default=50, show_default=True, help="Edits for which text is generated; a seeded sample.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--join", type=click.Choice(get_args(Join)), default="raw", show_default=True, help="How prompt and answer meet.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the metrics to this JSON file.")
def evaluate(output: Path | None, **options: Any) -> None:
    """Measure any model on a file of edits."""
    from orchestrator.evaluate_model import measure_model

    if output and (output.is_dir() or not output.parent.is_dir()):
        raise InputError(f"output: {output} cannot be written; expected the name of a file in an existing folder")
    metrics = measure_model(**{k: v for k, v in options.items() if v is not None}, progress=Progress(_errors()))
    if output:
        output.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    _screen().print(metrics_table(metrics))


@cli.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--samples", default=12, show_default=True, help="Prompts to show.")
def show(run_dir: Path, samples: int) -> None:
    """Print a finished run: text before and after, metrics, places."""
    show_run(run_dir, _screen(), samples=samples)


@cli.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--to-turn", type=int, required=True, help="The turn to go back to; 0 is the unedited model.")
def rollback(run_dir: Path, to_turn: int) -> None:
    """Make a finished run exactly what it was after a turn."""
    from orchestrator.run.replay import roll_back

    with closing(_coordinator(_stored(run_dir))) as coordinator:
        show_run(roll_back(coordinator, to_turn), _screen())


@cli.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--edit", "ids", multiple=True, required=True, help="Id of an edit to take out; may be given several times.")
def remove(run_dir: Path, ids: tuple[str, ...]) -> None:
    """Make a finished run what it would be if some edits had never been asked for."""
    from orchestrator.run.replay import remove as take_out

    with closing(_coordinator(_stored(run_dir))) as coordinator:
        show_run(take_out(coordinator, ids), _screen())


@cli.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--edits", "show_edits", is_flag=True, help="Every edit with its id, not only the turns.")
def history(run_dir: Path, show_edits: bool) -> None:
    """List what was ever applied, refused or rolled back."""
    show_history(run_dir, _screen(), edits=show_edits)


@cli.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.argument("turn_a", type=click.IntRange(min=0))
@click.argument("turn_b", type=click.IntRange(min=0))
@click.option("--samples", default=20, show_default=True, help="Edits to show.")
def diff(run_dir: Path, turn_a: int, turn_b: int, samples: int) -> None:
    """Show what changed from one turn to another: edits, weights, health."""
    show_diff(run_dir, turn_a, turn_b, _screen(), samples=samples)


@cli.command()
@click.argument("delta", type=click.Path(path_type=Path))
@click.option("--base", help="Folder or Hub id of the model that was edited; by default the one that the delta names.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder for the edited model.")
def apply(delta: Path, base: str | None, output: Path) -> None:
    """Make the edited model of a delta and its base; DELTA is its folder, or that of a run with --save delta."""
    from editing.files.delta import ABOUT, apply_delta

    inner = delta / "delta"
    folder = inner if (inner / ABOUT).is_file() else delta
    used = apply_delta(folder, output, base=base)
    _screen().print(f"{output}: {used} with the edits of {folder}", soft_wrap=True)


@cli.command()
@click.option("--output", default="runs/demo", show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".cache"), show_default=True, help="Where the converted model is kept.")
def demo(output: str, cache: Path) -> None:
    """Edit Gemma 3 270M with 240 facts that it does not know."""
    from orchestrator.demo import FACTS, gemma_folder

    progress = Progress(_errors())
    model = gemma_folder(cache, progress)
    run_edit(RunConfig(model=str(model), edits=str(FACTS), output=output, generate=240, overwrite=True))


cli.add_command(data)
cli.add_command(tune_command)
cli.add_command(plan_command)


def run_edit(config: RunConfig, *, resume: bool = False) -> None:
    """One run from a configuration, shown to a person."""
    from orchestrator.run.coordinator import Collapsed
    from orchestrator.run.recovery import run_to_the_end
    from orchestrator.run.replay import roll_back
    from orchestrator.run.topology import warn_of_what_a_job_loses

    warn_of_what_a_job_loses(config)
    config = with_stored_join(config.with_dataset()) if resume else config.with_dataset()
    try:
        show_run(run_to_the_end(lambda: _coordinator(config), resume=resume), _screen())
    except Collapsed as error:
        if config.on_collapse == "rollback":
            with closing(_coordinator(_stored(error.path))) as coordinator:
                roll_back(coordinator, error.healthy_turn)
            error.args = (f"{error}; rolled back to turn {error.healthy_turn}, the last healthy one",)
        show_run(error.path, _screen())
        raise


def _coordinator(config: RunConfig) -> "Coordinator":
    from orchestrator.run.coordinator import Coordinator
    from orchestrator.run.topology import make_worker
    from orchestrator.tracking import make_tracker

    tracker = make_tracker(config.tracking_uri, config.experiment)
    return Coordinator(config, make_worker(config), tracker, Progress(_errors()))


def _stored(run_dir: Path) -> RunConfig:
    return RunConfig.build(stored_config(run_dir))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code."""
    _quiet_libraries()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # or every new tensor is filled first: a model without weights too
    return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = cli.main(args=arguments, prog_name="ultraedit", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        return _fail(f"{error.format_message()} (see {error.ctx.command_path if error.ctx else 'ultraedit'} --help)", 2)
    except UltraEditError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", 130)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        return _fail(str(OutOfMemory.here(error)), OutOfMemory.exit_code)
    except OSError as error:  # a full disk, a folder that may not be written, a name too long
        return _fail(f"{error.filename or 'output'}: {error.strerror}" if error.strerror else str(error), 1)


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {' '.join(message.splitlines())}", err=True)
    return code


class _Lines(logging.Handler):
    """Log lines on standard error, each on one line however long; a progress bar stays below them."""

    def emit(self, record: logging.LogRecord) -> None:
        _errors().print(record.getMessage(), markup=False, emoji=False, highlight=False, soft_wrap=True)


def _screen() -> Console:
    return Console(markup=False, emoji=False)  # what edits and models say is text, whatever brackets it holds


def _errors() -> Console:
    return Console(stderr=True)


def _quiet_libraries() -> None:
    """Our own lines only: libraries report through errors, which are shown."""
    import transformers

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # or DeepSpeed says which it takes
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logger = logging.getLogger("ultraedit")
    logger.handlers, logger.propagate = [_Lines()], False
    logger.setLevel(logging.INFO)
