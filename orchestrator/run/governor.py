"""Notices that a model is breaking: limits on what every turn is measured by, and what to do when one is passed.

A shift is meant to change what the edits ask about and nothing else. Three signs say that it does more, and come long
before the metrics of the edits themselves fall: the edited weights grow, fixed questions get other answers, a fixed
text gets unlikely.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from editing.errors import UltraEditError
from editing.monitoring.health import Vitals
from editing.turn import TurnReport

logger = logging.getLogger("ultraedit")

_WEIGHT_GROWTH = "weight_growth"


class Collapsed(UltraEditError):
    """A run was stopped by a limit; what it had done is complete in its folder.

    Attributes:
        path: The run's folder.
        healthy_turn: Last measured turn that passed no limit.
    """

    exit_code = 3

    def __init__(self, reason: str, path: Path, healthy_turn: int) -> None:
        super().__init__(reason)
        self.path, self.healthy_turn = path, healthy_turn


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a model may go before it counts as collapsing. The defaults were passed where it began to hurt: see docs/LOG.md, "10,000 edits".

    Attributes:
        weight_growth: Largest growth of the Frobenius norm of an edited weight, as a share of the unedited one's.
        probe_retention: Smallest share of fixed probes whose answer is still the unedited model's.
        perplexity_growth: Largest perplexity on the fixed text, as a multiple of the unedited model's.
    """

    weight_growth: float = 0.3
    probe_retention: float = 0.5
    perplexity_growth: float = 2.0

    def passed(self, report: TurnReport, vitals: Vitals | None) -> dict[str, str]:
        """The limits that a turn has passed by name, each with one sentence."""
        found = {}
        name, growth = max(report.weight_growth.items(), key=lambda item: item[1])
        if not growth <= self.weight_growth:
            found[_WEIGHT_GROWTH] = f"the norm of {name} has grown by {growth:.0%} (limit {self.weight_growth:.0%})"
        if vitals is None:
            return found
        if not vitals.probe_retention >= self.probe_retention:
            kept = f"{vitals.probe_retention:.0%} of the fixed probes keep their answer"
            found["probe_retention"] = f"{kept} (limit {self.probe_retention:.0%})"
        if not vitals.perplexity_growth <= self.perplexity_growth:  # also where it is not a number
            times = f"{vitals.perplexity_growth:.3g} times the unedited model's"
            found["perplexity_growth"] = f"perplexity on the fixed text is {times} (limit {self.perplexity_growth:g})"
        return found


class Governor:
    """Decides when the model's health is measured, warns when a limit is passed, and stops the run if it is told to.

    Args:
        limits: The limits.
        limits_passed: Limits that were passed when the run was last here, of which it has warned.
        healthy_turn: Last measured turn until then that passed no limit.
        watch_every: Turns between two measurements.
        may_stop: Stop when a limit is passed, instead of a warning alone.

    Attributes:
        limits_passed: Limits that the last turn has passed, as far as it was measured.
        healthy_turn: Last measured turn that passed no limit.
        stop_reason: Why the run stops; empty while it goes on.
    """

    def __init__(
        self, limits: Limits, limits_passed: Iterable[str] = (), healthy_turn: int = 0, *, watch_every: int = 1, may_stop: bool = False
    ) -> None:
        self._limits, self._watch_every, self._may_stop = limits, watch_every, may_stop
        self.limits_passed, self.healthy_turn, self.stop_reason = sorted(limits_passed), healthy_turn, ""

    def wants_vitals(self, turn: int, report: TurnReport, *, is_first: bool, may_be_last: bool) -> bool:
        """Whether health is measured after a turn: every few turns, at both ends of a run, and where it will be stopped."""
        will_stop = self._may_stop and bool(self._limits.passed(report, None))
        return turn % self._watch_every == 0 or is_first or may_be_last or will_stop

    def judge(self, turn: int, report: TurnReport, vitals: Vitals | None) -> None:
        """Warn when a limit is passed, once until it holds again, or decide to stop."""
        passed = self._limits.passed(report, vitals)
        for name, sentence in passed.items():
            if name not in self.limits_passed:
                logger.warning("collapse: after turn %d %s", turn, sentence)
        if vitals is not None and not passed:
            self.healthy_turn = turn
        not_measured = [] if vitals is not None else [name for name in self.limits_passed if name != _WEIGHT_GROWTH]
        self.limits_passed = sorted({*passed, *not_measured})
        if passed and self._may_stop:
            self.stop_reason = f"stopped after turn {turn}: {'; '.join(passed.values())}"
