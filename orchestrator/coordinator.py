"""A run: edits in, an edited model and everything worth knowing about it out.

edit file --intake--> tokenized edits --turns of 100--> window of turns (the lookahead)
             |                                             |
             v                                             v  prefix, once a window
       rejected.jsonl                       worker: capture, solve, apply  ----> TurnReport --> tracker, turns.jsonl
                                                           |                         ^
                                                           `-- watch: a sample of applied edits, every turn
after the last turn:  save the model  ->  evaluate every edit  ->  generate text for a sample  ->  report
at the very end:      the whole folder is put in place in one rename
"""

import hashlib
import json
import logging
import platform
import random
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from editing import TurnRefused, UltraEditError
from editing.datasets import BadRecord, EditFile
from editing.evaluation import EditResult, summarize
from editing.turn import PreparedTurn, TokenizedEdit, TurnReport, in_turns
from orchestrator.config import RunConfig
from orchestrator.intake import Intake, RejectedFile, count_records
from orchestrator.progress import Progress
from orchestrator.report import plot_run
from orchestrator.results import EditRow, EditsFile, Generated
from orchestrator.rundir import RunDirectory
from orchestrator.tracking import Tracker
from workers.worker import Worker

logger = logging.getLogger("ultraedit")

_EVALUATION_CHUNK = 200
"""Edits evaluated at a time: keeps memory constant, and one turn's text on the screen."""


@dataclass
class _Tally:
    """What a run has counted so far."""

    edits: int = 0
    turns: int = 0
    rejected: int = 0
    refused: int = 0
    refused_turns: set[int] = field(default_factory=set)
    last_refusal: str = ""
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("load", "capture", "solve", "apply", "watch", "save", "evaluation"), 0.0)
    )


class Coordinator:
    """Drives one worker through one run.

    Args:
        config: The run's configuration.
        worker: Where the model lives; not loaded yet.
        tracker: Where the run is followed.
        progress: Shows a person how far it is.
    """

    def __init__(self, config: RunConfig, worker: Worker, tracker: Tracker, progress: Progress) -> None:
        self.config, self.worker, self.tracker, self.progress = config, worker, tracker, progress
        self._began = time.perf_counter()
        self._tally = _Tally()
        self._history: list[dict[str, Any]] = []

    def run(self) -> Path:
        """Do the whole run.

        Returns:
            The run's folder, complete.

        Raises:
            UltraEditError: The run cannot go on; nothing was written.
        """
        source = EditFile(self.config.edits, self.config.format)
        with RunDirectory(Path(self.config.output), overwrite=self.config.overwrite) as out:
            total = min(count_records(source), self.config.limit or sys.maxsize)
            self._load(out)
            run = self._describe(source)
            self.tracker.start(out.path.name, _parameters(run))
            status = "FAILED"
            try:
                self._work(source, out, total, run)
                status = "FINISHED"
            finally:
                self.tracker.close(status)
            out.commit()
        return out.path

    def _work(self, source: EditFile, out: RunDirectory, total: int, run: dict[str, Any]) -> None:
        worker, config = self.worker, self.config
        intake = Intake(source, worker.tokenizer, max_tokens=worker.max_tokens, limit=config.limit, strict=config.strict)
        self._edit(intake, out, total)
        run["digests_after"] = worker.digest()
        with self._timed("save"), self.progress.spinner("saving the model"):
            worker.save(out.staging / "model")
        self._finish(out, run, self._evaluate(intake, out))

    def _load(self, out: RunDirectory) -> None:
        with self._timed("load"), self.progress.spinner(f"loading {self.config.model}"):
            self.worker.load()
        out.require_space(int(1.05 * self.worker.saved_size()))

    def _edit(self, intake: Intake, out: RunDirectory, total: int) -> None:
        rejected = RejectedFile(out.staging / "rejected.jsonl")

        def set_aside(bad: BadRecord) -> None:
            logger.warning("record %d set aside: %s", bad.number, bad.reason)
            rejected.add(bad.number, bad.reason, bad.raw)
            self._tally.rejected += 1

        try:
            with self.progress.bar("editing", total) as advance, (out.staging / "turns.jsonl").open("w") as turns_file:
                turns = in_turns(intake.edits(set_aside), self.config.edits_per_turn)
                for number, prepared in enumerate(self._prepared(turns), start=1):
                    row = self._apply(number, prepared, rejected)
                    turns_file.write(json.dumps(row) + "\n")
                    advance(len(prepared.turn.edits))
        finally:
            rejected.close()
        if not self._tally.edits:
            raise UltraEditError(f"no edit was applied: {self._tally.last_refusal or f'all {self._tally.rejected} records were rejected'}")

    def _prepared(self, turns: Iterator[Any]) -> Iterator[PreparedTurn]:
        while window := list(islice(turns, self.config.lookahead)):
            yield from self.worker.prepare(window)

    def _apply(self, number: int, prepared: PreparedTurn, rejected: RejectedFile) -> dict[str, Any]:
        tally = self._tally
        try:
            report = self.worker.apply(prepared)
        except TurnRefused as error:
            self._refuse(number, prepared, error, rejected)
            return {"turn": number, "refused": str(error)}
        tally.edits += report.edits
        tally.turns += 1
        for phase, seconds in report.seconds.items():
            if phase != "measure":
                tally.seconds["capture" if phase == "prefix" else phase] += seconds
        with self._timed("watch"):
            watched = self.worker.watch()
        row = {**asdict(report), "turn": number, "total_edits": tally.edits, "watch": watched}
        self._history.append(row)
        self.tracker.log(_turn_metrics(report, watched), step=tally.edits)
        return row

    def _refuse(self, number: int, prepared: PreparedTurn, error: TurnRefused, rejected: RejectedFile) -> None:
        edits = prepared.turn.edits
        by_position = dict(zip(prepared.turn.order, edits, strict=True))
        named = ", ".join(repr(by_position[i].request.prompt) for i in error.culprits[:5])
        message = f"turn {number} was refused, its {len(edits)} edits are not applied: {error}" + (f"; caused by {named}" if named else "")
        logger.error(message)
        self._tally.refused += len(edits)
        self._tally.refused_turns.add(number)
        self._tally.last_refusal = message
        for position in sorted(by_position):
            edit = by_position[position]
            content = {"prompt": edit.request.prompt, "target": edit.request.target}
            rejected.add(edit.record, f"turn {number} was refused: {error}", content)

    def _evaluate(self, intake: Intake, out: RunDirectory) -> dict[str, float | None]:
        """Second reading of the edits: metrics, texts, ``edits.parquet``."""
        tally = self._tally
        total = tally.edits + tally.refused
        chosen = set(random.Random(self.config.seed).sample(range(total), min(self.config.generate, total))) if self.config.eval else set()
        results: list[EditResult] = []
        rows: list[EditRow] = []
        with self._timed("evaluation"), EditsFile(out.staging / "edits.parquet") as file, self.progress.bar("evaluating", total) as advance:
            for chunk in _chunks(enumerate(intake.edits()), _EVALUATION_CHUNK):
                written = self._rows(chunk, chosen)
                file.write(written)
                results += [row.result for row in written if row.result and row.applied]
                rows += [row for row in written if row.generated and row.applied]
                advance(len(chunk))
        metrics = summarize(results)
        for name in ("efficacy_generated", "generalization_generated"):
            values = [value for row in rows if (value := getattr(row, name)) is not None]
            metrics[name] = sum(values) / len(values) if values else None
        metrics["generated"] = len(rows)
        return metrics

    def _rows(self, chunk: list[tuple[int, TokenizedEdit]], chosen: set[int]) -> list[EditRow]:
        edits = [edit for _, edit in chunk]
        results = self.worker.evaluate(edits) if self.config.eval else [None] * len(edits)
        positions = [k for k, (position, _) in enumerate(chunk) if position in chosen]
        texts = dict(zip(positions, self._generate([edits[k] for k in positions]), strict=True))
        rows = []
        for k, (position, edit) in enumerate(chunk):
            turn = position // self.config.edits_per_turn + 1
            rows.append(EditRow(turn, turn not in self._tally.refused_turns, edit, results[k], texts.get(k)))
        return rows

    def _generate(self, edits: list[TokenizedEdit]) -> list[Generated]:
        if not edits:
            return []
        prompts = [edit.request.prompt for edit in edits]
        before = self.worker.generate(prompts, unedited=True)
        after = self.worker.generate(prompts)
        asked = [k for k, edit in enumerate(edits) if edit.request.rephrase]
        rephrased = dict(zip(asked, self.worker.generate([edits[k].request.rephrase or "" for k in asked]), strict=True))
        return [Generated(before[k], after[k], rephrased.get(k)) for k in range(len(edits))]

    def _describe(self, source: EditFile) -> dict[str, Any]:
        described = self.worker.describe()
        run = {
            "config": self.config.as_dict(),
            "model": described,
            "input": {"path": str(source.path), "format": source.format.name, "sha256": _file_digest(source.path)},
            "digests_before": self.worker.digest(),
            "versions": _versions(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        modules = described["modules"]
        masters = "kept" if described["float32_masters"] else "not needed" if described["dtype"] == "float32" else "off"
        logger.info(
            "model     %s, %.2f B parameters, %s on %s",
            described["architecture"],
            described["parameters"] / 1e9,
            described["dtype"],
            described["device"],
        )
        logger.info("modules   %d: %s", len(modules), ", ".join(modules[:3]) + (", ..." if len(modules) > 3 else ""))
        logger.info("learning rate %g, float32 masters %s, input format %s", described["learning_rate"], masters, source.format.name)
        return run

    def _finish(self, out: RunDirectory, run: dict[str, Any], metrics: dict[str, float | None]) -> None:
        tally, memory = self._tally, _peak_memory()
        tally.seconds["total"] = time.perf_counter() - self._began
        final = {
            **metrics,
            "edits": tally.edits,
            "turns": tally.turns,
            "rejected": tally.rejected,
            "refused": tally.refused,
            "seconds": {name: round(value, 4) for name, value in tally.seconds.items()},
            "peak_memory_bytes": memory,
        }
        run["mlflow_run_id"] = self.tracker.run_id()
        out.write_json("run.json", run)
        out.write_json("metrics.json", final)
        plot_run(self._history, out.staging / "plots" / "run.png")
        self.tracker.log(
            {
                **{f"final_{name}": value for name, value in metrics.items()},
                **{f"seconds_{name}": value for name, value in tally.seconds.items()},
                "rejected": tally.rejected,
                "refused": tally.refused,
                "peak_memory_bytes": memory,
            },
            step=tally.edits,
        )
        for name in ("run.json", "metrics.json", "edits.parquet", "rejected.jsonl", "turns.jsonl", "plots"):
            self.tracker.artifact(out.staging / name)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._tally.seconds[phase] += time.perf_counter() - began


def _turn_metrics(report: TurnReport, watched: dict[str, float | None]) -> dict[str, float | None]:
    norms = report.shift_norms
    return {
        "loss": report.loss,
        "efficacy_before": report.efficacy_before,
        **{f"watch_{name}": value for name, value in watched.items() if not name.endswith("_before")},
        "shift_norm": sum(n * n for n in norms.values()) ** 0.5,
        **{f"shift_norm.{name}": value for name, value in norms.items()},
        **{f"turn_seconds_{phase}": seconds for phase, seconds in report.seconds.items() if phase != "measure"},
    }


def _parameters(run: dict[str, Any]) -> dict[str, Any]:
    model = run["model"]
    return {
        **run["config"],
        "modules": ", ".join(model["modules"]),
        "learning_rate": model["learning_rate"],
        **{name: model[name] for name in ("architecture", "parameters", "device", "dtype", "float32_masters")},
        "input_sha256": run["input"]["sha256"],
        **{f"version_{name}": version for name, version in run["versions"].items()},
    }


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "safetensors", "pyarrow")}
    return {"python": platform.python_version(), "platform": platform.platform(), **versions}


def _peak_memory() -> int:
    """Largest resident memory of this process, or of the GPU if that is larger, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(peak, torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else peak
