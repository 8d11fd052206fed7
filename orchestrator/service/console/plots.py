"""Figures of versions as lines: what a plot's template needs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

_LABELS = {
    "efficacy": "Efficacy of each turn's edits",
    "old_efficacy": "Efficacy of older edits",
    "probes_kept": "Own probes that stay",
    "probe_retention": "Built-in probes that stay",
    "perplexity_growth": "Perplexity, times the unedited model's",
    "weight_growth": "Growth of the weights",
}
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 308.0, 10.0, 98.0
_MAX_DOTS = 40


def plots_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A plot of each figure that was measured, over the versions.

    Args:
        rows: Figures of versions, the oldest first.
    """
    return [_plot(name, label, rows) for name, label in _LABELS.items()]


def _plot(name: str, label: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = [(row["number"], row[name]) for row in rows if isinstance(row[name], (int, float)) and math.isfinite(row[name])]
    values = [value for _, value in found]
    low, high = min([0.0, *values]), max([1.0, *values])
    first, last = (found[0][0], found[-1][0]) if found else (0, 0)
    points = [(_at(number, first, last, _LEFT, _RIGHT), _at(value, low, high, _BOTTOM, _TOP)) for number, value in found]
    said = ", ".join(f"version {number}: {value:.3g}" for number, value in found[-10:]) or "nothing was measured yet"
    return {
        "label": label,
        "told": f"{label}. {said}",
        "low": low,
        "high": high,
        "last": values[-1] if values else None,
        "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points),
        "dots": [(f"{x:.1f}", f"{y:.1f}") for x, y in points[-_MAX_DOTS:]],
    }


def _at(value: float, low: float, high: float, start: float, end: float) -> float:
    return start if high == low else start + (value - low) / (high - low) * (end - start)
