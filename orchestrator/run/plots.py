"""The plots of a run: the model's health and the size of its changes, and the metrics at milestones."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MILESTONE_METRICS = ("efficacy", "generalization", "generalization_persona", "multi_hop", "portability", "specificity", "locality_retention")

_VITALS = (
    ("watch_efficacy", "efficacy"),
    ("watch_generalization", "generalization"),
    ("watch_locality_retention", "locality retention"),
    ("efficacy_after", "efficacy of the turn's own edits"),
    ("probe_retention", "fixed probes retained"),
)
"""What the run's plot shows of :class:`editing.monitoring.health.Vitals`, and how it is called there."""

_LAYOUT, _DPI = "constrained", 110
"""How a figure finds room for its texts, which takes as long as drawing it, and its dots an inch."""

_BEFORE = ("watch_efficacy", "watch_generalization")
"""Those of which it shows the unedited model's on the same sample too."""


def plot_run(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the model's health and the size of its changes over applied edits."""
    if not history:
        return
    with _figure(path, 3) as (shares, perplexity, weights):
        _draw_health(shares, perplexity, vitals_by_edits(history))
        _draw_weights(weights, history)


def vitals_by_edits(history: Sequence[dict[str, Any]]) -> dict[int, dict[str, float | None]]:
    """Vitals by the number of edits applied, from the unedited model on, which the first measurement tells of.

    Args:
        history: The applied turns, as ``turns.jsonl`` has them.
    """
    measured = {row["total_edits"]: row["vitals"] for row in history if row["vitals"]}
    if not measured:
        return {}
    first = next(iter(measured.values()))
    perplexity = first.get("perplexity_before") or first["perplexity"] / first["perplexity_growth"]  # version 0.1.0 has the growth alone
    unedited = {
        **{name: first.get(f"{name}_before") for name, _ in _VITALS},
        "watch_locality_retention": None if first["watch_locality_retention"] is None else 1.0,
        "efficacy_after": history[0]["efficacy_before"],
        "probe_retention": 1.0,
        "perplexity": perplexity,
    }
    return {0: unedited, **measured}


def _draw_health(shares: Any, perplexity: Any, vitals: dict[int, dict[str, float | None]]) -> None:
    edits, rows = list(vitals), list(vitals.values())
    for name, label in _VITALS:
        lines = _curve(shares, edits, [row[name] for row in rows], label)
        if lines and name in _BEFORE:
            before = [rows[0][name], *(row.get(f"{name}_before") for row in rows[1:])]
            _curve(shares, edits, before, f"{label}, unedited model", color=lines[0].get_color(), linestyle=":", alpha=0.6)
    shares.set(ylabel="share", ylim=(-0.03, 1.03), title="A sample of the edits applied so far, and fixed probes that no edit is about")
    shares.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")  # beside the curves: they may be anywhere between 0 and 1
    _curve(perplexity, edits, [row["perplexity"] for row in rows], None)
    _from_zero(perplexity)
    perplexity.set(ylabel="perplexity", title="Fixed text")


def _draw_weights(weights: Any, history: Sequence[dict[str, Any]]) -> None:
    edits = [row["total_edits"] for row in history]
    total = [sum(n * n for n in row["shift_norms"].values()) ** 0.5 for row in history]
    _curve(weights, edits, total, "norm of the turn's shift, all modules", color="black")
    _from_zero(weights)
    weights.set(xlabel="edits applied", ylabel="Frobenius norm", title="Edited weights")
    growth = weights.twinx()
    _curve(growth, [0, *edits], [0.0, *(100 * max(row["weight_growth"].values()) for row in history)], None, color="tab:red")
    _from_zero(growth)
    growth.set_ylabel("largest growth of a weight's norm, %", color="tab:red")
    weights.legend(loc="best", fontsize="small")


def plot_milestones(milestones: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the metrics at the milestones, the numbers of edits at which the run was evaluated."""
    if not milestones:
        return
    edits = [row["edits"] for row in milestones]
    with _figure(path, 1) as (axes,):
        for name in MILESTONE_METRICS:
            _curve(axes, edits, [row.get(name) for row in milestones], name.replace("_", " "))
        for name in ("efficacy", "specificity"):
            _curve(axes, edits, [row[f"{name}_before"] for row in milestones], f"{name}, unedited model", linestyle=":", alpha=0.6)
        axes.set(xscale="log", xlabel="edits applied", ylabel="share", ylim=(-0.03, 1.03), title="Metrics over a lifelong run")
        axes.set_xticks(edits, [f"{n:,}" for n in edits])
        axes.minorticks_off()
        axes.legend(loc="best", fontsize="small")


def _from_zero(axes: Any) -> None:
    """Have an axis begin at 0, with room above the curves."""
    top = axes.dataLim.ymax
    axes.set_ylim(0, 1.1 * top if math.isfinite(top) and top > 0 else None)


@contextmanager
def _figure(path: Path, rows: int) -> Iterator[Any]:
    """A column of axes, saved to a file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(rows, 1, figsize=(10, 1.5 + 2.4 * rows), sharex=True, layout=_LAYOUT, squeeze=False)
    for each in axes[:, 0]:
        each.grid(alpha=0.3)
    yield axes[:, 0]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _curve(axes: Any, edits: Sequence[int], values: Sequence[float | None], label: str | None, **style: Any) -> list[Any]:
    """Draw a line through the values that are not ``None``; nothing if all are."""
    if all(value is None for value in values):
        return []
    points = [float("nan") if value is None else value for value in values]
    return list(axes.plot(edits, points, marker="o", markersize=3, label=label, **style))
