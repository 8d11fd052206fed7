"""A whole job by its phases: ``ultraedit edit`` with its evaluation, and the same work the way the published implementation goes about it.

The plain way loads the model, asks all probes of the unedited model, edits, asks them again, and saves: whole forward passes over groups of
padded sequences, logits at all positions. Neither writes text nor measures perplexity. Both give the same metrics.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from editing.model.tokenization import AnswerSequence
from editing.turn import TokenizedEdit
from orchestrator.run.timing import timed
from tests.benchmarks.baseline import GROUP_SIZE, make_batch
from tests.benchmarks.workload import Workload, make_baseline

PHASES = {
    "load": ("load",),
    "edit": ("prefix", "warm_up", "capture", "targets", "solve", "refine", "apply"),
    "evaluate": ("evaluation",),
    "save": ("save",),
}
"""Of a job, and the phases of ``metrics.json`` that they consist of."""

KINDS = ("sequence", "rephrase", "locality")
METRICS = ("efficacy", "generalization", "locality_retention")


@dataclass(frozen=True)
class Job:
    """One way of working.

    Attributes:
        seconds: By phase, and of the whole job: ``total``.
        metrics: Those of :data:`METRICS`.
    """

    seconds: dict[str, float]
    metrics: dict[str, float]


def run_here(workload: Workload, folder: Path) -> Job:
    """``ultraedit edit`` in a process of its own, which knows no earlier answers; its start is part of the whole."""
    count = str(workload.num_turns * workload.edits_per_turn)
    files = ["--model", workload.model, "--edits", str(workload.edits), "--limit", count, "--output", str(folder / "run")]
    method = ["--preset", workload.preset, "--framings", "raw", "--edits-per-turn", str(workload.edits_per_turn)]
    precision = ["--dtype", "float32", "--device", "cpu"]
    without = ["--generate", "0", "--perplexity-text", "none", "--tracking-uri", "none"]
    own_cache = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    began = time.perf_counter()
    command = [sys.executable, "-m", "orchestrator", "edit", *files, *method, *precision, *without]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=own_cache)
    total = time.perf_counter() - began
    found = json.loads((folder / "run" / "metrics.json").read_text())
    seconds = {phase: sum(found["seconds"].get(part, 0.0) for part in parts) for phase, parts in PHASES.items()}
    return Job({**seconds, "total": total}, {name: found[name] for name in METRICS})


def run_plainly(workload: Workload, folder: Path) -> Job:
    """The same work with nothing but the model's own forward. The tokens are this project's, so that both are asked the same."""
    like = workload.load_editor()
    turns = workload.turns(like)
    edits = [edit for turn in turns for edit in turn.in_request_order]
    seconds = dict.fromkeys(PHASES, 0.0)
    began = time.perf_counter()
    with timed(seconds, "load"):
        baseline = make_baseline(like, workload.load_model(), folder)
    with timed(seconds, "evaluate"):
        before = _answers(baseline.model, edits)
    with timed(seconds, "edit"):
        for turn in turns:
            baseline.apply_turn(turn.sequences)
    with timed(seconds, "evaluate"):
        after = _answers(baseline.model, edits)
    with timed(seconds, "save"):
        baseline.model.save_pretrained(folder / "plain")
    rights = {kind: [_share_right(edit, kind, answers[kind]) for edit, answers in zip(edits, after, strict=True)] for kind in KINDS[:2]}
    kept = [float(now["locality"] == then["locality"]) for now, then in zip(after, before, strict=True)]
    metrics = dict(zip(METRICS, (*map(fmean, rights.values()), fmean(kept)), strict=True))
    return Job({**seconds, "total": time.perf_counter() - began}, metrics)


def _share_right(edit: TokenizedEdit, kind: str, answer: tuple[int, ...]) -> float:
    return fmean(float(a == b) for a, b in zip(answer, edit.requested[kind].answer_ids, strict=True))


@torch.no_grad()
def _answers(model: Any, edits: Sequence[TokenizedEdit]) -> list[dict[str, tuple[int, ...]]]:
    """The likeliest token at each answer token of each probe, group by group."""
    found: list[dict[str, tuple[int, ...]]] = [{} for _ in edits]
    for kind in KINDS:
        for first in range(0, len(edits), GROUP_SIZE):
            numbers = range(first, min(first + GROUP_SIZE, len(edits)))
            sequences: list[AnswerSequence] = [edits[i].requested[kind] for i in numbers]
            input_ids, mask, _ = make_batch(sequences)
            likeliest = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits.argmax(-1)
            for row, (i, sequence) in enumerate(zip(numbers, sequences, strict=True)):
                found[i][kind] = tuple(likeliest[row, sequence.first_row : len(sequence.input_ids)].tolist())
    return found
