"""Notices that a model is breaking: limits on what every turn is measured by.

A shift is meant to change what the edits ask about and nothing else. Three signs say that it does more, and come long
before the metrics of the edits themselves fall: the edited weights grow, fixed questions get other answers, a fixed
text gets unlikely.
"""

from dataclasses import dataclass

from editing.monitoring.health import Vitals
from editing.turn import TurnReport


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
            found["weight_growth"] = f"the norm of {name} has grown by {growth:.0%} (limit {self.weight_growth:.0%})"
        if vitals is None:
            return found
        if not vitals.probe_retention >= self.probe_retention:
            kept = f"{vitals.probe_retention:.0%} of the fixed probes keep their answer"
            found["probe_retention"] = f"{kept} (limit {self.probe_retention:.0%})"
        if not vitals.perplexity_growth <= self.perplexity_growth:  # also where it is not a number
            times = f"{vitals.perplexity_growth:.3g} times the unedited model's"
            found["perplexity_growth"] = f"perplexity on the fixed text is {times} (limit {self.perplexity_growth:g})"
        return found
