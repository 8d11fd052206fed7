"""``ultraedit data``: commands about edit sets, not about models."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from editing.errors import InputError
from orchestrator.cli.build_command import build_command
from orchestrator.cli.console import messages, say, screen
from orchestrator.cli.errors import Invocation
from orchestrator.cli.help import Group
from orchestrator.cli.libraries import ready_libraries
from orchestrator.cli.options import COUNT, FORMATS, FROM_ZERO, NAMED_MODEL

if TYPE_CHECKING:
    from editing.datasets import EditFile
    from orchestrator.data.selection import Choice

_file = click.argument("file", type=click.Path(path_type=Path))
_format = click.option(
    "--format",
    type=click.Choice(("auto", *FORMATS)),
    metavar="NAME",
    default="auto",
    show_default=True,
    help=f"Record format of the edits: auto, {', '.join(FORMATS)}.",
)
_seed = click.option("--seed", **FROM_ZERO, default=0, show_default=True, help="Seed of every random choice.")
_strict = click.option("--strict", is_flag=True, help="Stop at the first record that is unusable or has a field that is not read.")
_overwrite = click.option("--overwrite", is_flag=True, help="Replace existing files.")
_output = click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    required=True,
    help="File to write: Parquet, or JSON lines if its name ends in .jsonl.",
)


@click.group("data", cls=Group)
@click.pass_context
def data(context: click.Context) -> None:
    """Inspect, convert, sample and split edit sets, and build them from triples."""
    invocation = context.find_object(Invocation)
    if invocation is not None:
        invocation.command = f"data {context.invoked_subcommand}"


@data.command("inspect")
@_file
@_format
@click.option("--model", **NAMED_MODEL, help="Also count this model's tokens. Its weights are not read.")
@click.option("--limit", **COUNT, help="Read the first N records only.")
@_strict
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect_command(file: Path, format: str, model: str | None, limit: int | None, strict: bool, as_json: bool) -> None:
    """Show what a file or folder of edits holds."""
    from rich.console import Group

    from editing.datasets import EditFile
    from orchestrator.cli.data_tables import inspection_parts
    from orchestrator.data.inspection import inspect

    tokenizer, max_tokens = _tokenizer(model) if model else (None, None)
    source = EditFile(file, format)
    with _reading(source) as advance:
        found = inspect(source, tokenizer=tokenizer, max_tokens=max_tokens, limit=limit, strict=strict, advance=advance)
    if as_json:
        say(json.dumps(found.as_dict(), indent=2))
    else:
        screen().print(Group(*inspection_parts(found)))


@data.command("convert")
@_file
@_output
@_format
@_seed
@_strict
@_overwrite
def convert_command(file: Path, output: Path, format: str, seed: int, strict: bool, overwrite: bool) -> None:
    """Write edits of any format in the common schema."""
    from editing.datasets import EditFile
    from orchestrator.data.selection import everything

    _write(EditFile(file, format, seed=seed), [output], everything, strict=strict, overwrite=overwrite)


@data.command("sample")
@_file
@_output
@click.option("-n", "count", **COUNT, required=True, help="Number of edits.")
@_format
@_seed
@_strict
@_overwrite
def sample_command(file: Path, output: Path, count: int, format: str, seed: int, strict: bool, overwrite: bool) -> None:
    """Write a uniform sample of the edits, the same for the same seed."""
    from editing.datasets import EditFile
    from orchestrator.data.selection import sampled

    _write(EditFile(file, format, seed=seed), [output], sampled(count, seed), strict=strict, overwrite=overwrite)


@data.command("split")
@_file
@_output
@click.option("--fractions", metavar="X,...", required=True, help="Shares that add up to 1, such as 0.8,0.1,0.1.")
@_format
@_seed
@_strict
@_overwrite
def split_command(file: Path, output: Path, fractions: str, format: str, seed: int, strict: bool, overwrite: bool) -> None:
    """Split the edits into several files. All edits of one prompt go to the same file.

    The files are named after --output, with a number: all.parquet becomes all-1.parquet, all-2.parquet and so on.
    """
    from editing.datasets import EditFile
    from orchestrator.data.selection import dealt

    shares = _numbers(fractions)
    outputs = [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(1, len(shares) + 1)]
    _write(EditFile(file, format, seed=seed), outputs, dealt(shares, seed), strict=strict, overwrite=overwrite)


data.add_command(build_command)


def _tokenizer(model: str) -> tuple[Any, int | None]:
    """A model's tokenizer, and the length of its context in tokens."""
    ready_libraries()
    from editing.files.pretrained import context_length, load_config, load_tokenizer
    from editing.model.joining import Joiner

    config = load_config(model)
    return Joiner(load_tokenizer(model), num_embeddings=config.get_text_config(decoder=True).vocab_size), context_length(config)


def _write(source: "EditFile", outputs: list[Path], choose: "Choice", *, strict: bool, overwrite: bool) -> None:
    from orchestrator.cli.data_tables import written_table
    from orchestrator.data.selection import write

    with _reading(source) as advance:
        written = write(source, outputs, choose, strict=strict, overwrite=overwrite, advance=advance)
    screen().print(written_table(written, outputs))


def _numbers(fractions: str) -> list[float]:
    try:
        return [float(part) for part in fractions.split(",")]
    except ValueError:
        raise InputError(f"fractions: expected numbers like 0.8,0.1,0.1, found {fractions!r}") from None


@contextmanager
def _reading(source: "EditFile") -> Iterator[Any]:
    from orchestrator.progress import Progress

    with Progress(messages()).bar("reading", source.num_records) as advance:
        yield advance
