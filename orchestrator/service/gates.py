"""Gates: what a turn is measured by before it is kept.

    efficacy       the turn's own edits          old edits   a sample of those that were live before
    probes         a person's own questions      limits      built-in probes, perplexity, growth of the weights (the run's governor)
    tasks          scores on files, if set

Everything is asked through the worker's own verbs, so that it is the same on shards, replicas and a streamed model.
"""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editing import EditRequest, InvalidRequest
from editing.errors import InputError
from editing.monitoring.evaluation import EditResult
from editing.turn import TokenizedEdit
from orchestrator.run.live import LiveRun, Tried
from orchestrator.service.config import GateLimits, TaskScore
from orchestrator.service.probing import Probe
from orchestrator.wording import counted

_SLACK = 1e-9


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gates say of a turn.

    Attributes:
        gate: The first gate that failed; empty if all were passed.
        reason: Why, with the figure and its limit.
        figures: All that was measured, by name.
        efficacy: Of each edit of the turn, in its order.
        lost: Probes that are not answered any more as they must be.
    """

    gate: str = ""
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    efficacy: Sequence[float] = ()
    lost: Sequence[Probe] = ()

    @property
    def passed(self) -> bool:
        return not self.gate


class Gates:
    """Measures a live run's model, after a turn and against what it was before it.

    Args:
        run: The run.
        limits: When a turn is kept.

    Raises:
        InputError: A file of a task cannot be read.
    """

    def __init__(self, run: LiveRun, limits: GateLimits) -> None:
        self._run, self._limits = run, limits
        self._tasks = {task: _read_task(task) for task in limits.tasks}

    def before(self, old: Sequence[EditRequest], probes: Sequence[Probe]) -> "Before":
        """Measure what a turn must not break. To be called before it is applied.

        Args:
            old: Edits that are in the weights now.
            probes: Questions that must stay.
        """
        chosen = list(old)
        if len(chosen) > self._limits.old_sample:
            chosen = random.Random(len(chosen)).sample(chosen, self._limits.old_sample)
        edits = self._tokenized(chosen)
        asked = self._tokenized([EditRequest(probe.prompt, probe.answer) for probe in probes])
        held = [Held(*known) for known in zip(probes, asked, [result.efficacy for result in self._evaluate(asked)], strict=True)]
        return Before(edits, _mean([result.efficacy for result in self._evaluate(edits)]), held)

    def judge(self, requests: Sequence[EditRequest], tried: Tried, before: "Before") -> Verdict:
        """Judge a turn that was applied and is not kept yet."""
        if tried.refused:
            return Verdict(gate="refused", reason=tried.refused, figures={"refused": tried.refused})
        own = [result.efficacy for result in self._evaluate(self._tokenized(requests))]
        old = _mean([result.efficacy for result in self._evaluate(before.old)])
        now = self._evaluate([held.edit for held in before.probes])
        lost = [held.probe for held, result in zip(before.probes, now, strict=True) if result.efficacy < held.efficacy - _SLACK]
        figures = {
            "efficacy": _mean(own),
            "old_efficacy": old,
            "old_efficacy_before": before.efficacy,
            "old_sample": len(before.old),
            "probes": len(before.probes),
            "probes_lost": len(lost),
            "probes_kept": 1 - len(lost) / len(before.probes) if before.probes else None,
            **(tried.vitals.as_dict() if tried.vitals else {}),
            **({"weight_growth": max(tried.report.weight_growth.values())} if tried.report else {}),
            **{f"task.{task.name}": self._score(edits) for task, edits in self._tasks.items()},
        }
        gate, reason = self._failure(figures, tried, lost)
        return Verdict(gate=gate, reason=reason, figures=plain(figures), efficacy=own, lost=lost)

    def _failure(self, figures: Mapping[str, Any], tried: Tried, lost: Sequence[Probe]) -> tuple[str, str]:
        limits = self._limits
        if tried.limit:
            return "limits", tried.limit
        kept = figures["probes_kept"]
        if kept is not None and kept < limits.probes - _SLACK:
            first = lost[0]
            said = f"{kept:.0%} of {counted(figures['probes'], 'probe')} keep their answer (limit {limits.probes:.0%})"
            return "probes", f"{said}; the first that does not: {first.prompt!r} is to be answered {first.answer!r}"
        if figures["efficacy"] is not None and figures["efficacy"] < limits.efficacy:
            return "efficacy", f"efficacy of the turn's edits is {figures['efficacy']:.2f} (limit {limits.efficacy:g})"
        old, then = figures["old_efficacy"], figures["old_efficacy_before"]
        if old is not None and then - old > limits.old_efficacy_drop:
            return (
                "old edits",
                f"efficacy of {figures['old_sample']} older edits fell from {then:.2f} to {old:.2f} (limit {limits.old_efficacy_drop:g})",
            )
        for task in self._tasks:
            if figures[f"task.{task.name}"] < task.at_least:
                return f"task {task.name}", f"score {figures[f'task.{task.name}']:.2f} (limit {task.at_least:g})"
        return "", ""

    def _score(self, questions: Sequence[EditRequest]) -> float:
        results = self._evaluate(self._tokenized(questions))
        return sum(result.efficacy >= 1 - _SLACK for result in results) / len(results)

    def _tokenized(self, requests: Sequence[EditRequest]) -> list[TokenizedEdit]:
        tokenizer = self._run.tokenizer
        return [tokenizer.tokenize(request, 0) for request in requests]

    def _evaluate(self, edits: Sequence[TokenizedEdit]) -> list[EditResult]:
        size = self._run.worker.edits_at_a_time
        return [result for a in range(0, len(edits), size) for result in self._run.worker.evaluate(edits[a : a + size])[0]]


@dataclass(frozen=True, slots=True)
class Held:
    """A probe as it was answered before a turn.

    Attributes:
        probe: The probe.
        edit: The same, tokenized.
        efficacy: Share of the answer's tokens that were right.
    """

    probe: Probe
    edit: TokenizedEdit
    efficacy: float


@dataclass(frozen=True, slots=True)
class Before:
    """What was so before a turn.

    Attributes:
        old: The sample of older edits.
        efficacy: Their mean efficacy.
        probes: Questions that must stay.
    """

    old: Sequence[TokenizedEdit]
    efficacy: float | None
    probes: Sequence[Held]


def plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as JSON can have them: what is not finite becomes a word."""
    return {name: str(value) if isinstance(value, float) and not math.isfinite(value) else value for name, value in figures.items()}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _read_task(task: TaskScore) -> list[EditRequest]:
    try:
        lines = [json.loads(line) for line in Path(task.file).read_text(encoding="utf-8").splitlines() if line.strip()]
        found = [EditRequest(line["prompt"], line["answer"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError, InvalidRequest) as error:
        raise InputError(f"gates.tasks.{task.name}: {task.file} cannot be read ({error}); expected JSON lines with prompt and answer") from None
    if not found:
        raise InputError(f"gates.tasks.{task.name}: {task.file} is empty; expected JSON lines with prompt and answer")
    return found
