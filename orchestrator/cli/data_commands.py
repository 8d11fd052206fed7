"""``ultraedit data``: commands about edit sets, not about models."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group
from rich.table import Table

from editing import InputError
from editing.datasets import FORMATS, EditFile
from editing.files.pretrained import context_length, load_config, load_tokenizer
from editing.model.joining import Joiner
from orchestrator.cli.build_command import build_command
from orchestrator.data.inspection import Inspection, inspect
from orchestrator.data.selection import Choice, Written, dealt, everything, sampled, write
from orchestrator.progress import Progress

_file = click.argument("file", type=click.Path(path_type=Path))
_format = click.option("--format", type=click.Choice(["auto", *FORMATS]), default="auto", show_default=True, help="Record format.")
_seed = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
_strict = click.option("--strict", is_flag=True, help="Stop at the first bad record instead of setting it aside.")
_overwrite = click.option("--overwrite", is_flag=True, help="Replace what is there.")
_output = click.option(
    "--output", "-o", type=click.Path(path_type=Path), required=True, help="File to write: Parquet, or JSON lines if its name ends in .jsonl."
)


@click.group()
def data() -> None:
    """Look into edit sets, convert, sample and split them, and build them from triples."""


data.add_command(build_command)


@data.command("inspect")
@_file
@_format
@click.option("--model", help="Also count this model's tokens: folder or Hub id. Its weights are not read.")
@click.option("--limit", type=click.IntRange(min=1), help="Look at the first N records only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect_command(file: Path, format: str, model: str | None, limit: int | None, as_json: bool) -> None:
    """Tell what a file or folder of edits holds."""
    tokenizer, max_tokens = None, None
    if model:
        config = load_config(model)
        tokenizer = Joiner(load_tokenizer(model), num_embeddings=config.get_text_config(decoder=True).vocab_size)
        max_tokens = context_length(config)
    source = EditFile(file, format)
    with _reading(source) as advance:
        found = inspect(source, tokenizer=tokenizer, max_tokens=max_tokens, limit=limit, advance=advance)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _screen().print(Group(*_inspection_tables(found)))


@data.command("convert")
@_file
@_output
@_format
@_seed
@_strict
@_overwrite
def convert_command(file: Path, output: Path, format: str, seed: int, strict: bool, overwrite: bool) -> None:
    """Write edits of any format in the common schema."""
    _write(EditFile(file, format, seed=seed), [output], everything, strict=strict, overwrite=overwrite)


@data.command("sample")
@_file
@_output
@click.option("-n", "count", type=click.IntRange(min=1), required=True, help="How many edits.")
@_format
@_seed
@_strict
@_overwrite
def sample_command(file: Path, output: Path, count: int, format: str, seed: int, strict: bool, overwrite: bool) -> None:
    """Write a uniform sample of the edits, the same for the same seed."""
    _write(EditFile(file, format, seed=seed), [output], sampled(count, seed), strict=strict, overwrite=overwrite)


@data.command("split")
@_file
@_output
@click.option("--fractions", required=True, help="Shares that add up to 1, as 0.8,0.1,0.1.")
@_format
@_seed
@_strict
@_overwrite
def split_command(file: Path, output: Path, fractions: str, format: str, seed: int, strict: bool, overwrite: bool) -> None:
    """Deal the edits out to several files, all edits of one prompt to the same one.

    They are called as --output says, with a number: all.parquet becomes all-1.parquet, all-2.parquet and so on.
    """
    shares = _numbers(fractions)
    outputs = [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(1, len(shares) + 1)]
    _write(EditFile(file, format, seed=seed), outputs, dealt(shares, seed), strict=strict, overwrite=overwrite)


def _write(source: EditFile, outputs: list[Path], choose: Choice, *, strict: bool, overwrite: bool) -> None:
    with _reading(source) as advance:
        written = write(source, outputs, choose, strict=strict, overwrite=overwrite, advance=advance)
    _screen().print(_written_table(written, outputs))


def _written_table(written: Written, outputs: list[Path]) -> Table:
    table = _table(None, "edits", "file", right=("edits",))
    for count, output in zip(written.counts, outputs, strict=True):
        table.add_row(f"{count:,}", str(output))
    if written.num_rejected:
        table.add_row(f"{written.num_rejected:,}", f"{written.rejected} (bad records, with reasons)")
    return table


def _numbers(fractions: str) -> list[float]:
    try:
        return [float(part) for part in fractions.split(",")]
    except ValueError:
        raise InputError(f"fractions: expected numbers like 0.8,0.1,0.1, found {fractions!r}") from None


@contextmanager
def _reading(source: EditFile) -> Iterator[Any]:
    with Progress(Console(stderr=True)).bar("reading", source.num_records) as advance:
        yield advance


def _screen() -> Console:
    return Console(markup=False, emoji=False)


def _inspection_tables(found: Inspection) -> Iterator[Any]:
    """What was found, as a person reads it."""
    values = found.as_dict()
    table = _table(None, "", "edits", right=("edits",))
    for name in ("records", "usable", "duplicates", "conflicts"):
        table.add_row(name, f"{values[name]:,}")
    for name, count in values["with"].items():
        each = found.probes[name.removesuffix("_prompt")]
        table.add_row(f"with {name}", f"{count:,}" + (f" ({each:,} prompts)" if each > count else ""))
    parts = f", {found.parts} parts" if found.parts > 1 else ""
    yield from (f"{found.path}: format {found.format}{parts}", table, "")
    lengths = _table("Lengths", "", "min", "mean", "median", "p95", "max", right=("min", "mean", "median", "p95", "max"))
    for unit in ("characters", "tokens"):
        for name, summary in values.get(unit, {}).items():
            if summary:
                lengths.add_row(f"{name}, {unit}", *(f"{summary[key]:,}" for key in ("min", "mean", "median", "p95", "max")))
    yield from (lengths, "") if lengths.row_count else ()
    bad = _table("Bad records", "count", "first", "reason", right=("count", "first"))
    for entry in found.bad.values():
        bad.add_row(f"{entry['count']:,}", str(entry["first_record"]), entry["reason"])
    yield from (bad, "") if bad.row_count else ()
    conflicts = _table("The first conflicts", "record", "prompt", "target", "other target in record", right=("record", "other target in record"))
    for example in found.conflict_examples:
        conflicts.add_row(str(example["record"]), _short(example["prompt"]), _short(example["target"]), str(example["earlier_record"]))
    yield from (conflicts, "") if conflicts.row_count else ()
    preview = _table("The first edits", "field", "text")
    for k, request in enumerate(values["preview"]):
        if k:
            preview.add_row()
        for name, value in request.items():
            for text in value if isinstance(value, list) else [value]:
                preview.add_row(name, _short(text))
    yield from (preview,) if preview.row_count else ()


def _table(title: str | None, *columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _short(text: str) -> str:
    line = " ".join(text[:400].split())
    return line if len(line) <= 120 else line[:119].rstrip() + "…"
