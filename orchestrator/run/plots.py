"""A run drawn: the health of the model and the size of its changes, and the metrics on the way."""

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


def plot_run(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the model's health and the size of its changes over applied edits."""
    if not history:
        return
    edits = [row["total_edits"] for row in history]
    measured = [row for row in history if row["vitals"]]
    with _figure(path, 3) as (shares, perplexity, weights):
        for name, label in _VITALS:
            _curve(shares, [row["total_edits"] for row in measured], [row["vitals"][name] for row in measured], label)
        shares.set(ylabel="share", ylim=(-0.03, 1.03), title="A sample of the edits applied so far, and fixed probes that no edit is about")
        shares.legend(loc="best", fontsize="small")
        _curve(perplexity, [row["total_edits"] for row in measured], [row["vitals"]["perplexity"] for row in measured], None)
        perplexity.set(ylabel="perplexity", title="Fixed text", ylim=(0, None))
        total = [sum(n * n for n in row["shift_norms"].values()) ** 0.5 for row in history]
        weights.plot(edits, total, color="black", label="norm of the turn's shift, all modules")
        weights.set(xlabel="edits applied", ylabel="Frobenius norm", title="Edited weights", ylim=(0, None))
        growth = weights.twinx()
        growth.plot(edits, [100 * max(row["weight_growth"].values()) for row in history], color="tab:red")
        growth.set_ylabel("largest growth of a weight's norm, %", color="tab:red")
        weights.legend(loc="best", fontsize="small")


def plot_milestones(milestones: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the metrics at the numbers of edits that were asked for."""
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


@contextmanager
def _figure(path: Path, rows: int) -> Iterator[Any]:
    """A column of axes, saved to a file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(rows, 1, figsize=(8, 1.5 + 2.8 * rows), sharex=True, layout="constrained", squeeze=False)
    for each in axes[:, 0]:
        each.grid(alpha=0.3)
    yield axes[:, 0]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curve(axes: Any, edits: Sequence[int], values: Sequence[float | None], label: str | None, **style: Any) -> None:
    """A line through the values that are there; nothing if there is none."""
    if any(value is not None for value in values):
        points = [float("nan") if value is None else value for value in values]
        axes.plot(edits, points, marker="o", markersize=3, label=label, **style)
