"""The end of a run: the model is saved, the edits of the ledger are evaluated, and everything worth knowing is written into the run's folder."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch

from editing.files import pretrained
from editing.files.adapter import total_shifts, write_adapter
from editing.files.delta import write_delta
from editing.files.reader import read_weights
from editing.memory.budget import peak_bytes
from editing.sharding.shards import linears_of
from editing.state import stored_weights
from orchestrator.progress import Progress
from orchestrator.run.checkpoint import STATE, Checkpoint
from orchestrator.run.directory import RunDirectory
from orchestrator.run.journal import Journal, RunState
from orchestrator.run.ledger_evaluation import assess_all
from orchestrator.run.plots import plot_milestones, plot_run
from orchestrator.run.run_config import RunConfig
from orchestrator.run.timing import timed
from orchestrator.run.unedited_answers import UneditedAnswers
from orchestrator.tracking import Tracker
from workers.protocol import Worker

logger = logging.getLogger("ultraedit")

_PUBLISHED_TOKENS = "the published tokens are not those of the text as typed; the metrics named as_typed are of that text"
_OTHER_TOKENS = "prompt and answer encoded together have other tokens; the prompt is read by itself, and the answer as what follows it"

_COUNTS = {
    "edits": "num_edits_applied",
    "turns": "num_turns_applied",
    "rejected": "num_records_rejected",
    "refused": "num_edits_refused",
    "conflicts": "num_conflicts",
    "without_subject": "num_edits_without_subject",
    "otherwise_tokenized": "num_edits_otherwise_tokenized",
    "milestones": "milestones",
}
"""What ``metrics.json`` tells of the run's state, under names that do not change."""

_FEW_HELD = 0.5
"""A run that fewer of its edits than this share come out of is told so."""

_ARTIFACTS = ("run.json", "metrics.json", "edits.parquet", "rejected.jsonl", "turns.jsonl", "plots")


class Finish:
    """Brings a run to its end.

    Args:
        config: The run's configuration.
        worker: Holds the edited model.
        tracker: Where the run is followed.
        progress: Shows a person how far it is.
    """

    def __init__(self, config: RunConfig, worker: Worker, tracker: Tracker, progress: Progress) -> None:
        self._config, self._worker, self._tracker, self._progress = config, worker, tracker, progress

    def run(self, out: RunDirectory, journal: Journal, last: Checkpoint, run: dict[str, Any], *, began: float, collapse: str = "") -> None:
        """Save the model, evaluate the edits, write ``edits.parquet``, ``run.json``, ``metrics.json`` and the plots, and track them.

        Args:
            out: The run's folder.
            journal: The run's files and state.
            last: The checkpoint after the last turn.
            run: The run's description.
            began: When the run began, by :func:`time.perf_counter`.
            collapse: Why the run was stopped, if it was.
        """
        digests = self._worker.digest()
        with timed(journal.state.seconds, "save"):
            self._save_model(out, last, run["model"]["dtype"])
        self._write_results(out, journal, {**run, "digests_after": digests}, began, collapse)

    def _save_model(self, out: RunDirectory, last: Checkpoint, dtype: str) -> None:
        """Write the edited model, or the edited weights alone, which the last checkpoint has."""
        with self._progress.spinner("saving the model"):
            if self._config.save == "full":
                self._worker.save(out.staging / "model")
            elif self._config.save == "peft":
                self._save_adapter(out.staging / "adapter", last, dtype)
            else:
                weights = stored_weights(last.path / STATE)
                write_delta(out.staging / "delta", weights, base=self._config.model, fingerprint=last.state["base_fingerprint"], dtype=dtype)

    def _save_adapter(self, folder: Path, last: Checkpoint, dtype: str) -> None:
        """Write the run's whole shift as an adapter that loses nothing but rounding."""
        edited = stored_weights(last.path / STATE, exact=True)
        model, precision = pretrained.local_folder(self._config.model), torch.float32 if dtype == "float32" else torch.bfloat16
        linears = linears_of(pretrained.make_skeleton(model, pretrained.load_config(model), precision), edited)
        shifts = total_shifts(read_weights(model, edited, precision), edited, linears, num_turns=last.turn)
        write_adapter(folder, shifts, linears, base=self._config.model)

    def _write_results(self, out: RunDirectory, journal: Journal, run: dict[str, Any], began: float, collapse: str) -> None:
        state, memory = journal.state, _peak_memory()
        _warn_of_missing_subjects(state)
        _warn_of_other_tokens(state, run["model"]["method"]["join"])
        with timed(state.seconds, "evaluation"):
            unedited = UneditedAnswers(self._worker, state.base_fingerprint)
            metrics = assess_all(self._worker, journal.ledger, unedited, self._config, out.staging / "edits.parquet", self._progress)
        _warn_of_edits_that_do_not_hold(metrics)
        state.seconds["total"] += time.perf_counter() - began
        counts = {name: getattr(state, field) for name, field in _COUNTS.items()} | ({"collapse": collapse} if collapse else {})
        seconds = {name: round(value, 4) for name, value in state.seconds.items()}
        memory = max(memory, _peak_memory())
        out.write_run({**run, "input": state.source, "mlflow_run_id": self._tracker.run_id()})
        out.write_json("metrics.json", {**metrics, **counts, "seconds": seconds, "peak_memory_bytes": memory})
        journal.sync()
        plot_run(_applied_turns(journal), out.staging / "plots" / "run.png")
        plot_milestones(state.milestones, out.staging / "plots" / "lifelong.png")
        self._track(out, state, metrics, seconds, memory)

    def _track(self, out: RunDirectory, state: RunState, metrics: dict[str, float | None], seconds: dict[str, float], memory: int) -> None:
        final = {f"final_{name}": value for name, value in metrics.items()} | {f"seconds_{name}": value for name, value in seconds.items()}
        self._tracker.log(
            {**final, "rejected": state.num_records_rejected, "refused": state.num_edits_refused, "peak_memory_bytes": memory},
            step=state.num_edits_applied,
        )
        for name in _ARTIFACTS:
            if (out.staging / name).exists():
                self._tracker.artifact(out.staging / name)


def _warn_of_other_tokens(state: RunState, join: str) -> None:
    if state.num_edits_otherwise_tokenized:
        what = _PUBLISHED_TOKENS if join == "published" else _OTHER_TOKENS
        logger.warning("text: %d of %d edits: %s", state.num_edits_otherwise_tokenized, state.num_edits_applied, what)


def _warn_of_missing_subjects(state: RunState) -> None:
    if state.num_edits_without_subject:
        found = f"{state.num_edits_without_subject} of {state.num_edits_applied} edits have no subject that stands in their prompt"
        logger.warning("subjects: %s and are written at the answer alone; 'ultraedit data inspect' counts the field", found)


def _warn_of_edits_that_do_not_hold(metrics: dict[str, float | None]) -> None:
    held, count = metrics.get("held"), int(metrics["evaluated"] or 0)
    if held is not None and held < _FEW_HELD:
        found = f"{round((1 - held) * count)} of {count} edits do not hold: the model does not give their whole answer"
        logger.warning("edits: %s; a higher --learning-rate or --strength, or more --passes, writes them more firmly", found)


def _applied_turns(journal: Journal) -> list[dict[str, Any]]:
    with journal.turns.path.open(encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if "refused" not in row]


def _peak_memory() -> int:
    """Largest resident memory of this process, or of the GPU if that is larger, in bytes."""
    return max(peak_bytes(), torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)
