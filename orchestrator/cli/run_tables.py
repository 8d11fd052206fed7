"""A finished run, shown to a person: tables of texts, metrics, turns and edits, and where its files are."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow import ArrowException
from rich.console import Console, Group
from rich.text import Text

from editing.errors import InputError
from orchestrator.cli.tables import Column, Sheet
from orchestrator.run.directory import read_run
from orchestrator.run.ledger import Entry, Ledger
from orchestrator.run.plots import MILESTONE_METRICS
from orchestrator.wording import counted

_TEXT_WIDTH = 48
"""Characters of a generated text that the table shows; ``edits.parquet`` has it whole."""

_EDIT_COLUMNS = ("turn", "id", Column("prompt", text=True), Column("target", text=True), Column("outcome", text=True))

METRICS = (
    ("chat_exact", "chats that are answered with the target and nothing else"),
    ("chat_contained", "chats with the target in the answer"),
    ("chat_rephrased_exact", "rephrased prompts in chat: the target and nothing else"),
    ("chat_rephrased_contained", "rephrased prompts in chat: the target in the answer"),
    ("chat_stopped", "answers in chat that end by themselves"),
    ("chat_repeats", "answers in chat that say the same three times running"),
    ("chat_retention", "locality probes in chat whose answer is still the unedited model's own"),
    ("efficacy_generated", "edits whose generated text begins with the target"),
    ("generalization_generated", "rephrased prompts whose generated text does"),
    ("generated_contained", "edits with the target in the generated text"),
    ("generated_rephrased_contained", "rephrased prompts with the target in the generated text"),
    ("generated_stopped", "generated texts that end by themselves"),
    ("generated_repeats", "generated texts that say the same three times running"),
    ("held", "edits whose whole answer is right, token by token"),
    ("efficacy", "right answer tokens on the edits"),
    ("efficacy_as_typed", "the same on the text as it is typed, not as it was published"),
    ("generalization", "the same on the rephrased prompts"),
    ("generalization_as_typed", "the same on the text as it is typed"),
    ("generalization_persona", "the same on the prompts of other people"),
    ("multi_hop", "right answer tokens on questions that need the edit and more"),
    ("portability", "right answer tokens on other questions that the edit changes too"),
    ("specificity", "right answer tokens on the locality probes"),
    ("specificity_as_typed", "the same on the text as it is typed"),
    ("locality_retention", "locality probes whose answer is still the unedited model's own"),
    ("perplexity", "perplexity of a text that no edit is about"),
)
"""Metrics in the order in which they are shown, and what each one is: first what who asks the served model sees."""


def show_run(path: Path, console: Console, *, samples: int = 12) -> None:
    """Print a finished run: text before and after, metrics, files.

    Raises:
        InputError: ``path`` holds no finished run.
    """
    run, metrics = read_run(path), read_json(path, "metrics.json")
    try:
        tables = [metrics_table(metrics), *_milestones(metrics)]
        parts = [*_texts(path / "edits.parquet", samples), *(part for t in tables if t.rows for part in (t, "")), *_places(path, run, metrics)]
    except (KeyError, OSError, ArrowException) as error:
        raise InputError(f"{path}: its run.json, metrics.json or edits.parquet is damaged ({type(error).__name__}: {error})") from None
    console.print(Group(*parts))


def show_history(path: Path, console: Console, *, edits: bool = False) -> None:
    """Print the ledger of a run: a line a turn, or a line an edit.

    Raises:
        InputError: ``path`` holds no ledger.
    """
    table = Sheet(*_EDIT_COLUMNS) if edits else Sheet("turn", "edits", Column("when", text=True), Column("outcome", text=True))
    for (turn, outcome), entries in groupby(_ledger(path), key=lambda e: (e.turn, e.outcome)):
        rows = list(entries)
        if edits:
            for entry in rows:
                table.add(str(turn), entry.id, entry.request.prompt, entry.request.target, outcome)
        else:
            table.add(str(turn), str(len(rows)), f"{rows[0].when:%Y-%m-%d %H:%M:%S} UTC", outcome)
    console.print(table)


def show_diff(path: Path, turn_a: int, turn_b: int, console: Console, *, samples: int = 20) -> None:
    """Print what changed between two turns: the edits, the health, the weights.

    Raises:
        InputError: ``path`` holds no finished run, or it has no such turns.
    """
    read_run(path)
    turns = {row["turn"]: row for row in read_turns(path)}
    last = max(turns, default=0)
    if not turn_a < turn_b <= last:
        raise InputError(f"turns: expected two turns from 0 to {last}, the earlier one first, found {turn_a} and {turn_b}")
    between = [row for number, row in turns.items() if turn_a < number <= turn_b and "refused" not in row]
    entries = [e for e in _ledger(path) if turn_a < e.turn <= turn_b and not e.rolled_back]
    conflicts = sum(len(row["conflicts"]) for row in between)
    overruled = f", {conflicts} of them overruled an earlier one" if conflicts else ""
    console.print(f"turns {turn_a + 1} to {turn_b}: {sum(e.applied for e in entries)} edits applied{overruled}")
    console.print(_edits_table(entries, samples))
    health = Sheet("", Column(f"turn {turn_a}", right=True), Column(f"turn {turn_b}", right=True), title="Health")
    then, now = (_last(turns, turn, "vitals") for turn in (turn_a, turn_b))
    for name in sorted(then.keys() | now.keys()):
        health.add(name.replace("_", " "), share(then.get(name)), share(now.get(name)))
    console.print(health)
    measured = (f"growth, turn {turn_a}", f"growth, turn {turn_b}", "shifts between, sum of norms")
    weights = Sheet("module", *(Column(name, right=True) for name in measured), title="Weights")
    before, after = (_last(turns, turn, "weight_growth") for turn in (turn_a, turn_b))
    for name, growth in after.items():
        shifts = sum(row["shift_norms"][name] for row in between)
        weights.add(name, f"{before.get(name, 0.0):.2%}", f"{growth:.2%}", f"{shifts:.4g}")
    console.print(weights)


def _last(turns: Mapping[int, dict[str, Any]], turn: int, field: str) -> dict[str, Any]:
    """The newest measurement at a turn or before it; empty if there is none, or if all turns until then were refused."""
    measured = [n for n, row in turns.items() if n <= turn and row.get(field)]
    return dict(turns[max(measured)][field]) if measured else {}


def _ledger(path: Path) -> Iterator[Entry]:
    if not (path / "ledger").is_dir():
        raise InputError(f"{path}: holds no ledger, so it is no finished run")
    read_run(path)  # or it is refused
    yield from Ledger(path / "ledger")


def read_turns(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``turns.jsonl``.

    Raises:
        InputError: There is none, or it is damaged.
    """
    try:
        with (path / "turns.jsonl").open(encoding="utf-8") as lines:
            return [dict(json.loads(line)) for line in lines]
    except FileNotFoundError:
        raise InputError(f"{path}: holds no turns.jsonl, so it is no finished run") from None
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{path / 'turns.jsonl'}: is damaged ({type(error).__name__}: {error})") from None


def _edits_table(entries: Sequence[Entry], samples: int) -> Sheet:
    table = Sheet(*_EDIT_COLUMNS)
    for entry in entries[: max(0, samples)]:
        table.add(str(entry.turn), entry.id, entry.request.prompt, entry.request.target, entry.outcome)
    if len(entries) > samples:
        table.add("", "", f"and {len(entries) - samples} more", "", "")
    return table


def metrics_table(metrics: dict[str, Any]) -> Sheet:
    """Metrics, each with what it says; the unedited model's beside it where it was measured."""
    evaluated = f" of {metrics['evaluated']} edits" if metrics.get("evaluated") else ""
    table = Sheet("metric", Column("before", right=True), Column("now", right=True), Column("what it is", text=True), title=f"Metrics{evaluated}")
    for name, meaning in METRICS:
        if metrics.get(name) is not None and (metrics.get("otherwise_tokenized") or not name.endswith("_as_typed")):
            sample = f" ({metrics['generated']} edits)" if _is_of_text(name) and metrics["generated"] != metrics.get("evaluated") else ""
            table.add(name, share(metrics.get(f"{name}_before")), share(metrics[name]), meaning + sample)
    return table


def tasks_table(metrics: dict[str, Any]) -> Sheet:
    """Metrics of tasks, with the standard error that comes of asking no more questions."""
    columns = (Column(name, right=True) for name in ("before", "now", "standard error"))
    table = Sheet("task", *columns, title="Tasks of lm-evaluation-harness")
    for name, before, now, error in task_rows(metrics):
        table.add(name, *map(share, (before, now, error)))
    return table


def task_rows(metrics: dict[str, Any]) -> list[tuple[str, float | None, float, float | None]]:
    """Of each metric of a task its name, its value before and now, and the standard error of the latter."""
    names = [name for name in metrics if name.startswith("task_") and not name.endswith(("_stderr", "_before"))]
    return [(name.removeprefix("task_"), metrics.get(f"{name}_before"), metrics[name], metrics.get(f"{name}_stderr")) for name in names]


def _is_of_text(name: str) -> bool:
    return name.endswith("_generated") or name.startswith(("chat_", "generated_"))


def _milestones(metrics: dict[str, Any]) -> list[Sheet]:
    """Metrics on the way, one line a milestone; as a list of one table, or of none."""
    names = [name for name in MILESTONE_METRICS if any(row.get(name) is not None for row in metrics["milestones"])]
    columns = (Column(name.replace("_", " "), right=True) for name in ("edits", "evaluated", *names))
    table = Sheet(*columns, title="On the way")
    for row in metrics["milestones"]:
        table.add(str(row["edits"]), str(row["evaluated"]), *(share(row.get(name)) for name in names))
    return [table]


def _texts(path: Path, samples: int) -> list[Any]:
    file = pq.ParquetFile(path)
    # in chat where the model is one: that is what who asks it sees. Runs of earlier versions have no such columns
    in_chat = "chat_text_after" in file.schema_arrow.names and file.read(["chat_text_after"])[0].null_count < file.metadata.num_rows
    in_text, chatting = ("text_before", "text_after", "efficacy_generated"), ("chat_text_before", "chat_text_after", "chat_contained")
    before, after, right = chatting if in_chat else in_text
    rows = [row for row in file.read(["prompt", "target", before, after, right, "efficacy_before"]).to_pylist() if row[after] is not None]
    rows.sort(key=lambda row: row["efficacy_before"] or 0)  # what the model did not know yet comes first; ties keep their order
    step = max(1, len(rows) // max(1, samples))
    chosen = rows[::step][:samples]
    if not chosen:
        return []
    texts = (Column(name, cut=name != "target", text=name == "target") for name in ("prompt", "target", "before", "now"))
    table = Sheet(*texts, "", title="What the model answers in chat" if in_chat else "What the model writes")
    for row in chosen:
        mark = Text("ok", "green") if row[right] else Text("no", "red")
        table.add(" ".join(row["prompt"].split()), row["target"], _one_line(row[before] or ""), _one_line(row[after]), mark)
    return [table, ""]


def _places(path: Path, run: dict[str, Any], metrics: dict[str, Any]) -> list[str]:
    seconds, uri = metrics["seconds"], run["config"]["tracking_uri"]
    overwritten = f", {metrics['overwritten']} overwritten by later ones" if metrics["overwritten"] else ""
    plots = "".join(sorted(f"plots/{plot.name}, " for plot in (path / "plots").glob("*.png")))
    lines = [f"collapse  {metrics['collapse']}"] if metrics.get("collapse") else []
    lines += [
        f"{counted(metrics['edits'], 'edit')} in {counted(metrics['turns'], 'turn')}, {metrics['rejected']} rejected, "
        f"{metrics['refused']} refused{overwritten}; "
        f"editing took {editing_seconds(seconds):.1f} s of {seconds['total']:.1f} s, peak memory {metrics['peak_memory_bytes'] / 1e9:.2f} GB",
        f"model     {path / 'model'}" if (path / "model").is_dir() else f"delta     {path / 'delta'}  (ultraedit apply {path} --output FOLDER)",
        f"results   {path}: metrics.json, edits.parquet, rejected.jsonl, turns.jsonl, {plots}run.json",
    ]
    if run.get("mlflow_run_id"):
        how = f"mlflow ui --backend-store-uri {uri} --host 127.0.0.1" if "://" in uri and not uri.startswith("http") else uri
        lines.append(f"tracking  {how}  (run {run['mlflow_run_id'][:8]})")
    return lines


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON object among a run's files.

    Raises:
        InputError: There is none, or it is damaged.
    """
    try:
        return dict(json.loads((path / name).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path}: holds no {name}, so it is no finished run") from None
    except (NotADirectoryError, ValueError):
        raise InputError(f"{path / name}: is not a run's {name}") from None


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TEXT_WIDTH else line[: _TEXT_WIDTH - 1].rstrip() + "…"


def editing_seconds(seconds: Mapping[str, float]) -> float:
    """The part of a run's seconds that the edits themselves took."""
    return sum(seconds.get(phase, 0.0) for phase in ("capture", "targets", "solve", "refine", "apply"))


def share(value: float | None) -> str:
    """A share as it is shown; nothing for what was not measured."""
    return "" if value is None else f"{value:.3f}"
