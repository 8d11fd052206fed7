"""Finished runs side by side: what they are, their metrics, their costs, and why some of it cannot be compared."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from editing.errors import InputError
from orchestrator.cli.run_tables import METRICS, editing_seconds, read_json, read_turns, share
from orchestrator.cli.tables import Column, Sheet
from orchestrator.run.directory import read_run

_SETTINGS = (
    ("seed", "another seed"),
    ("dtype", "another precision"),
    ("join", "another rule that joins prompt and answer"),
    ("framings", "other framings"),
)
"""Options that change what is measured, and what a run has where they differ."""

_VITALS = ("probe_retention", "perplexity_growth")


@dataclass(frozen=True, slots=True)
class Compared:
    """One run of those that are compared.

    Attributes:
        name: How the tables call it.
        path: Its folder.
        run: Its ``run.json``.
        metrics: Its ``metrics.json``.
        vitals: The model's health after the last turn at which it was measured.
    """

    name: str
    path: Path
    run: Mapping[str, Any]
    metrics: Mapping[str, Any]
    vitals: Mapping[str, Any]

    @property
    def about(self) -> dict[str, Any]:
        """What was run: model, preset, rate, and how much."""
        model, metrics = self.run["model"], self.metrics
        return {
            "model": Path(self.run["config"]["model"]).name,
            "preset": model.get("preset"),
            "learning_rate": model.get("learning_rate"),
            **{name: metrics[name] for name in ("edits", "turns", "refused", "rejected")},
        }

    @property
    def costs(self) -> dict[str, float]:
        """Seconds and bytes."""
        seconds = self.metrics["seconds"]
        return {
            "editing_seconds": editing_seconds(seconds),
            "total_seconds": seconds["total"],
            "peak_memory_gb": self.metrics["peak_memory_bytes"] / 1e9,
        }

    def as_dict(self) -> dict[str, Any]:
        """All of it under one another; ``None`` where the run has not measured it."""
        measured = {name: self.metrics.get(name) for name, _ in METRICS}
        return {"run": str(self.path), **self.about, **measured, **{name: self.vitals.get(name) for name in _VITALS}, **self.costs}

    def differs_from(self, first: "Compared") -> Iterator[str]:
        """Why its figures are not those of the same experiment."""
        ours, theirs = self.run, first.run
        if ours["input"].get("sha256") != theirs["input"].get("sha256") or self.metrics["edits"] != first.metrics["edits"]:
            yield "other edits"
        if ours.get("base_fingerprint") != theirs.get("base_fingerprint"):
            yield "another unedited model"
        for name, what in (("evaluated", "edits that were measured"), ("generated", "edits that text was generated for")):
            if self.metrics.get(name) != first.metrics.get(name):
                yield f"{self.metrics.get(name)} {what}, not {first.metrics.get(name)}"
        for name, what in _SETTINGS:
            if name in ours["config"] and name in theirs["config"] and ours["config"][name] != theirs["config"][name]:
                yield what


def compare_runs(paths: Sequence[Path], console: Console, *, as_json: bool = False) -> None:
    """Print finished runs side by side.

    Args:
        paths: Their folders, two at least.
        console: Where to.
        as_json: One JSON list in place of the tables, an object a run.

    Raises:
        InputError: One of them holds no finished run, or is given twice.
    """
    runs = [_read(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    if as_json:
        console.out(json.dumps([run.as_dict() for run in runs], indent=2, ensure_ascii=False), highlight=False)
        return
    console.print(Group(_table(runs), *(Text(line) for line in _differences(runs))))


def _read(path: Path, name: str) -> Compared:
    run, metrics = read_run(path), read_json(path, "metrics.json")
    vitals = [row["vitals"] for row in read_turns(path) if row.get("vitals")]
    compared = Compared(name, path, run, metrics, vitals[-1] if vitals else {})
    try:
        compared.as_dict()
        list(compared.differs_from(compared))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its run.json or metrics.json is damaged ({type(error).__name__}: {error})") from None
    return compared


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' own names, or their paths where two have the same."""
    whole = [path.resolve() for path in paths]
    if twice := next((path for k, path in enumerate(paths) if whole[k] in whole[:k]), None):
        raise InputError(f"{twice}: expected different runs, found this one twice; leave it out once")
    names = [path.name for path in whole]
    return names if len(set(names)) == len(names) else list(map(str, paths))


def _table(runs: Sequence[Compared]) -> Sheet:
    table = Sheet("", *(Column(run.name, right=True) for run in runs))
    every = [run.as_dict() for run in runs]
    for name in every[0]:
        if name != "run" and any(row[name] is not None for row in every):
            table.add(name.replace("_", " "), *(_cell(name, row[name]) for row in every))
    return table


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str | int):
        return str(value)
    if name == "learning_rate":
        return f"{value:.3g}"
    return f"{value:.1f}" if name.endswith("_seconds") else f"{value:.2f}" if name.endswith("_gb") else share(value)


def _differences(runs: Sequence[Compared]) -> list[str]:
    first = runs[0]
    found = [(run, list(run.differs_from(first))) for run in runs[1:]]
    return [f"not the same experiment: {run.name} has {', '.join(what)} than {first.name}" for run, what in found if what]
