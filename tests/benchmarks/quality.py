"""An honest search for the edit quality of a model: tuned on one part of the data, reported on another that was never looked at.

    tune     every setting, on the tuning part, all sizes and seeds      chooses one setting a method, a family and a size
    report   the chosen ones, on the held-back part, all sizes and seeds of the edit order
    frontier every setting, on the held-back part, first size and seed   a picture; nothing is chosen by it

A fifth of a data set's subjects, by the SHA-256 of their names, is the tuning part. Sizes beyond a part take all of it; a size is reported
with what the largest tuning size below it chose. Each measurement is a line of OUT/results.jsonl; one that is there is not
made again, so a search that was stopped goes on.

python -m tests.benchmarks.quality --model .cache/gemma-3-270m --counterfact FILE --zsre FILE --sizes 500,2000,10000 --out docs/quality
"""

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
import yaml

from editing.datasets import EditFile, NumberedRequest
from editing.files import pretrained
from editing.requests import EditRequest
from editing.turn import TokenizedEdit, tokenize
from tests.benchmarks.quality_cell import Setting, Sizes, UneditedTexts, measure
from tests.benchmarks.quality_report import Row, choose, merit, plot_frontier, samples, table

SETTINGS = Path(__file__).with_suffix(".yaml")
STAGES = ("tune", "report", "frontier")

Cell = Callable[[Any, Any, Setting, Sequence[TokenizedEdit], Sizes, UneditedTexts], dict[str, Any]]
"""One measurement: model, tokenizer, setting, edits, how much is looked at, and texts of the unedited model that may be known."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        model: Folder of the model.
        data: Edit files by name.
        settings: What is compared.
        tune_sizes: Edits of the measurements on the tuning part.
        sizes: Edits on the held-back part.
        seeds: Seeds of the edit order.
        stages: Some of ``STAGES``.
        look: How much of each run is looked at.
    """

    model: str
    data: Mapping[str, Path]
    settings: Sequence[Setting]
    tune_sizes: Sequence[int]
    sizes: Sequence[int]
    seeds: Sequence[int]
    stages: Sequence[str] = STAGES
    look: Sizes = field(default_factory=Sizes)


def read_settings(path: Path) -> list[Setting]:
    """Settings of a YAML file; lists of values stand for all their combinations, lists of lists for values that are lists."""
    described = yaml.safe_load(path.read_text())
    found = []
    for entry in described["settings"]:
        family, method = entry.pop("family"), entry.pop("method")
        for values in itertools.product(*(value if isinstance(value, list) else [value] for value in entry.values())):
            options = dict(zip(entry, values, strict=True))
            name = " ".join(f"{key}={'+'.join(value) if isinstance(value, list) else value}" for key, value in options.items())
            found.append(Setting(name, family, method, {**described["families"][family], **options}))
    return found


def is_tuning(edit: TokenizedEdit) -> bool:
    """Whether an edit belongs to the tuning part."""
    return is_tuning_subject(edit.request)


def is_tuning_subject(request: EditRequest) -> bool:
    """Whether what a request is about belongs to the tuning part."""
    name = request.subject or request.prompt
    return hashlib.sha256(name.encode()).digest()[0] % 5 == 0


class Search:
    """Measures what a plan asks for and what is not measured yet.

    Args:
        plan: What is asked for.
        out: Where results are.
        cell: Makes one measurement; by default :func:`tests.benchmarks.quality_cell.measure`.
    """

    def __init__(self, plan: Plan, out: Path, cell: Cell | None = None) -> None:
        self.plan, self.out, self._cell = plan, out, cell or measure
        out.mkdir(parents=True, exist_ok=True)
        self._file = out / "results.jsonl"
        self.rows: dict[str, Row] = {}
        if self._file.exists():
            self.rows = {row["key"]: row for row in map(json.loads, self._file.read_text().splitlines())}
        self._model, self._tokenizer = pretrained.load(plan.model, device=torch.device("cpu"))
        self._edits = {name: list(self._read(path)) for name, path in plan.data.items()}
        self._unedited: UneditedTexts = {}

    def run(self) -> None:
        """All stages of the plan, and the report."""
        plan = self.plan
        for stage in plan.stages:
            if stage == "tune":
                self._measure_all(stage, plan.settings, plan.tune_sizes, plan.seeds)
            elif stage == "report":
                self._measure_all(stage, plan.settings, plan.sizes, plan.seeds, only_chosen=True)
            else:
                self._measure_all(stage, plan.settings, plan.sizes[:1], plan.seeds[:1])
        self.write()

    def of(self, stage: str) -> list[Row]:
        """Rows of a stage."""
        return [row for row in self.rows.values() if row["stage"] == stage]

    def chosen(self, data: str, size: int) -> set[tuple[str, str]]:
        """Families and settings that the tuning part of a data set chose for a number of edits."""
        rows = [row for row in self.of("tune") if row["data"] == data]
        sizes = sorted({row["size"] for row in rows})
        nearest = max((s for s in sizes if s <= size), default=min(sizes, default=0))
        return {(row["family"], row["setting"]) for row in choose(row for row in rows if row["size"] == nearest)}

    def write(self) -> None:
        """Tables, samples and pictures."""
        parts = [
            "# Edit quality",
            "",
            "Written by `python -m tests.benchmarks.quality`; what the columns are is told there and in `quality_cell.py`.",
        ]
        for stage in STAGES:
            if rows := self.of(stage):
                parts += ["", f"## {stage}", "", table(sorted(rows, key=merit, reverse=True))]
                plot_frontier(rows, self.out / f"{stage}.png")
        for row in self.of("report"):
            if row["seed"] == self.plan.seeds[0] and row["method"] != "published":
                parts += ["", samples(row)]
        (self.out / "quality.md").write_text("\n".join(parts) + "\n", encoding="utf-8")

    def _read(self, path: Path) -> Iterator[TokenizedEdit]:
        for record in EditFile(path):
            if isinstance(record, NumberedRequest):
                yield tokenize(self._tokenizer, record.request, max_tokens=None, record=record.number)

    def _measure_all(self, stage: str, settings: Sequence[Setting], sizes: Sequence[int], seeds: Sequence[int], *, only_chosen: bool = False) -> None:
        for size, seed, (data, edits) in itertools.product(sizes, seeds, self._edits.items()):
            part = [edit for edit in edits if is_tuning(edit) == (stage == "tune")]
            random.Random(seed).shuffle(part)
            chosen = self.chosen(data, min(size, len(part))) if only_chosen else None
            if chosen is not None and (untuned := sorted({setting.family for setting in settings} - {family for family, _ in chosen})):
                raise SystemExit(f"{self._file}: no tuned setting of {', '.join(untuned)} on {data}; run the stage tune first")
            for setting in settings:
                if chosen is None or (setting.family, setting.name) in chosen:
                    self._measure(stage, data, part[:size], seed, setting)

    def _measure(self, stage: str, data: str, edits: Sequence[TokenizedEdit], seed: int, setting: Setting) -> None:
        asked = {"model": Path(self.plan.model).name, "stage": stage, "data": data, "size": len(edits), "seed": seed}
        asked |= {"family": setting.family, "method": setting.method, "setting": setting.name, "look": asdict(self.plan.look)}
        key = hashlib.sha256(json.dumps([asked, setting.options], sort_keys=True).encode()).hexdigest()[:16]
        if key in self.rows:
            return
        row = {"key": key, **asked, **self._cell(self._model, self._tokenizer, setting, edits, self.plan.look, self._unedited)}
        self.rows[key] = row
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        figures = " ".join(f"{name} {row[name]:.3f}" for name in ("efficacy", "generalization", "locality_retention", "exact"))
        click.echo(f"{stage} {data} {len(edits)} seed {seed} {setting.family} {setting.method} {setting.name}: {figures}")


def _numbers(_context: Any, _parameter: Any, value: str) -> list[int]:
    return [int(number) for number in value.split(",")]


@click.command()
@click.option("--model", default=".cache/gemma-3-270m", show_default=True)
@click.option("--counterfact", type=click.Path(path_type=Path))
@click.option("--zsre", type=click.Path(path_type=Path))
@click.option("--settings", type=click.Path(path_type=Path), default=SETTINGS, show_default=True)
@click.option("--only", default="", help="Settings whose family, method or name contains this.")
@click.option("--tune-sizes", default="500,2000", show_default=True, callback=_numbers)
@click.option("--sizes", default="500,2000,10000", show_default=True, callback=_numbers)
@click.option("--seeds", default="0,1,2", show_default=True, callback=_numbers)
@click.option("--stages", default=",".join(STAGES), show_default=True)
@click.option("--evaluated", default=500, show_default=True, help="Edits whose probes are measured.")
@click.option("--generated", default=100, show_default=True, help="Edits for which text is generated.")
@click.option("--text-tokens", default=50, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/quality"), show_default=True)
def main(counterfact: Path | None, zsre: Path | None, settings: Path, only: str, stages: str, out: Path, **options: Any) -> None:
    data = {name: path for name, path in (("counterfact", counterfact), ("zsre", zsre)) if path}
    if not data:
        raise click.UsageError("give --counterfact, --zsre or both")
    wanted = [s for s in read_settings(settings) if only in f"{s.family} {s.method} {s.name}"]
    look = Sizes(**{name: options[name] for name in ("evaluated", "generated", "text_tokens")})
    sizes = {name: options[name] for name in ("model", "tune_sizes", "sizes", "seeds")}
    Search(Plan(data=data, settings=wanted, stages=stages.split(","), look=look, **sizes), out).run()


if __name__ == "__main__":
    main()
