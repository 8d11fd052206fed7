"""What a person sees of a finished run: a picture, tables, and where everything is."""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow import ArrowException
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from editing import InputError
from orchestrator.ledger import Ledger

_TEXT_WIDTH = 48
"""Characters of a generated text that the table shows; ``edits.parquet`` has it whole."""

_METRICS = (
    ("efficacy", "right answer tokens on the edits"),
    ("generalization", "the same on the rephrased prompts"),
    ("specificity", "right answer tokens on the locality probes"),
    ("locality_retention", "locality probes whose answer is still the unedited model's own"),
    ("efficacy_generated", "edits whose generated text begins with the target"),
    ("generalization_generated", "rephrased prompts whose generated text does"),
)


def plot_run(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw metrics of the watched sample and shift norms over applied edits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    if not history:
        return
    edits = [row["total_edits"] for row in history]
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, layout="constrained")
    for name, label in (("efficacy", "efficacy"), ("generalization", "generalization"), ("locality_retention", "locality retention")):
        values = [row["watch"].get(name) for row in history]
        if any(v is not None for v in values):
            upper.plot(edits, [float("nan") if v is None else v for v in values], marker="o", markersize=3, label=label)
    upper.set(ylabel="share", ylim=(-0.03, 1.03), title="A sample of the edits applied so far")
    upper.legend(loc="best")
    total = [sum(n * n for n in row["shift_norms"].values()) ** 0.5 for row in history]
    lower.plot(edits, total, marker="o", markersize=3, color="black", label="all modules")
    for name in history[0]["shift_norms"]:
        lower.plot(edits, [row["shift_norms"][name] for row in history], linewidth=0.8, alpha=0.5)
    lower.set(xlabel="edits applied", ylabel="Frobenius norm", title="Shift of each turn: all modules together, and each one", ylim=(0, None))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def show_run(path: Path, console: Console, *, samples: int = 12) -> None:
    """Print a finished run: text before and after, metrics, places.

    Raises:
        InputError: ``path`` holds no finished run.
    """
    run, metrics = _read(path, "run.json"), _read(path, "metrics.json")
    try:
        parts = [*_texts(path / "edits.parquet", samples), metrics_table(metrics), "", *_places(path, run, metrics)]
    except (KeyError, OSError, ArrowException) as error:
        raise InputError(f"{path}: its run.json, metrics.json or edits.parquet is damaged ({type(error).__name__}: {error})") from None
    console.print(Group(*parts))


def show_history(path: Path, console: Console, *, edits: bool = False) -> None:
    """Print the ledger of a run: a line a turn, or a line an edit.

    Raises:
        InputError: ``path`` holds no ledger.
    """
    if not (path / "ledger").is_dir():
        raise InputError(f"{path}: holds no ledger, so it is no finished run")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("turn", "id", "prompt", "target", "outcome") if edits else ("turn", "edits", "when", "outcome"):
        table.add_column(name, overflow="fold" if edits else "ellipsis")
    for (turn, outcome), entries in groupby(Ledger(path / "ledger"), key=lambda e: (e.turn, e.outcome)):
        rows = list(entries)
        if edits:
            for entry in rows:
                table.add_row(str(turn), entry.id, entry.request.prompt, entry.request.target, outcome)
        else:
            table.add_row(str(turn), str(len(rows)), f"{rows[0].when:%Y-%m-%d %H:%M:%S} UTC", outcome)
    console.print(table)


def metrics_table(metrics: dict[str, Any]) -> Table:
    """Metrics, each with what it says; the unedited model's beside it where it was measured."""
    table = Table(title="Metrics", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column, justify in (("metric", "left"), ("before", "right"), ("now", "right"), ("what it is", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name, meaning in _METRICS:
        if metrics.get(name) is not None:
            sample = f" ({metrics['generated']} edits)" if name.endswith("_generated") else ""
            table.add_row(name, _share(metrics.get(f"{name}_before")), _share(metrics[name]), meaning + sample)
    return table


def _texts(path: Path, samples: int) -> list[Any]:
    columns = ["prompt", "target", "text_before", "text_after", "efficacy_generated", "efficacy_before"]
    rows = [row for row in pq.read_table(path, columns=columns).to_pylist() if row["text_after"] is not None]
    rows.sort(key=lambda row: row["efficacy_before"] or 0)  # what the model did not know yet comes first; ties keep their order
    step = max(1, len(rows) // max(1, samples))
    chosen = rows[::step][:samples]
    if not chosen:
        return []
    table = Table(title="What the model writes", title_justify="left", box=None, padding=(0, 2, 0, 0), expand=True)
    for name in ("prompt", "target", "before", "now", ""):
        table.add_column(name, no_wrap=name in ("target", ""), overflow="ellipsis", ratio=None if name in ("target", "") else 1)
    for row in chosen:
        mark = Text("ok", "green") if row["efficacy_generated"] else Text("no", "red")
        table.add_row(row["prompt"], row["target"], _one_line(row["text_before"]), _one_line(row["text_after"]), mark)
    return [table, ""]


def _places(path: Path, run: dict[str, Any], metrics: dict[str, Any]) -> list[str]:
    seconds, uri = metrics["seconds"], run["config"]["tracking_uri"]
    editing = sum(seconds[phase] for phase in ("capture", "solve", "apply"))
    overwritten = f", {metrics['overwritten']} overwritten by later ones" if metrics["overwritten"] else ""
    lines = [
        f"{metrics['edits']} edits in {metrics['turns']} turns, {metrics['rejected']} rejected, {metrics['refused']} refused{overwritten}; "
        f"editing took {editing:.1f} s of {seconds['total']:.1f} s, peak memory {metrics['peak_memory_bytes'] / 1e9:.2f} GB",
        f"model     {path / 'model'}",
        f"results   {path}: metrics.json, edits.parquet, rejected.jsonl, turns.jsonl, plots/run.png, run.json",
    ]
    if run.get("mlflow_run_id"):
        how = f"mlflow ui --backend-store-uri {uri} --host 127.0.0.1" if "://" in uri and not uri.startswith("http") else uri
        lines.append(f"tracking  {how}  (run {run['mlflow_run_id'][:8]})")
    return lines


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads((path / name).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path}: holds no {name}, so it is no finished run") from None
    except (NotADirectoryError, ValueError):
        raise InputError(f"{path / name}: is not a run's {name}") from None


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TEXT_WIDTH else line[: _TEXT_WIDTH - 1].rstrip() + "…"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
