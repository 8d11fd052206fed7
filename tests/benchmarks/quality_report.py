"""Tables and frontiers from the lines that :mod:`tests.benchmarks.quality` has collected."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Row = dict[str, Any]

FIGURES = ("efficacy", "generalization", "locality_retention", "exact", "exact_rephrase", "fluency", "perplexity_growth", "seconds_a_turn")
COUNTED = ("efficacy", "generalization", "locality_retention", "exact")
"""Figures in which a refined setting is to be better at once."""

_CHOSEN_BY = (("chat", "chat_retention"), ("efficacy", "locality_retention"))
"""What published settings and peers are chosen by, the first that a row tells of and, where that is a tie, the next."""

_COLOURS = {"published": "tab:gray", "refined": "tab:blue", "refined, at the subject too": "tab:orange"}


def merit(row: Row) -> tuple[float, ...]:
    """What published settings and peers are chosen by on the tuning part: the harmonic mean of efficacy and retention; neither buys the other.

    Where a row tells of chats, of exact answers and of retention in chat. Peers that never answer exactly are all alike in that; of these the
    prompts as typed decide.
    """
    return tuple(_harmonic(row[taught] or 0.0, row[kept] or 0.0) for taught, kept in _CHOSEN_BY if taught in row)


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def choose(rows: Iterable[Row]) -> list[Row]:
    """Of each family the published setting of most merit, and the refined one that is furthest above it in what it is least above it.

    Settings count by their means over seeds; those that were measured with fewer seeds than others of their family and method do not.
    """
    families: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in _means(rows):
        families[row["family"]][row["method"]].append(row)
    chosen = []
    for methods in families.values():
        beaten = max(methods.pop("published", []), key=merit, default=None)
        chosen += [beaten] if beaten else []
        chosen += [max(found, key=lambda row: (lead(row, beaten), merit(row))) for found in methods.values()]
    return chosen


def _means(rows: Iterable[Row]) -> list[Row]:
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["family"], row["method"], row["setting"]].append(row)
    most: dict[tuple[str, str], int] = defaultdict(int)
    for (family, method, _), group in groups.items():
        most[family, method] = max(most[family, method], len(group))
    full = [(key, group) for key, group in groups.items() if len(group) == most[key[:2]]]
    counted = (*COUNTED, *_CHOSEN_BY[0])
    return [group[0] | {name: statistics.fmean(row[name] or 0 for row in group) for name in counted if name in group[0]} for _, group in full]


def lead(row: Row, other: Row | None) -> float:
    """The smallest of a row's leads over another in what counts; a negative one is a lag."""
    return min(((row[name] or 0) - (other[name] or 0) for name in COUNTED), default=0.0) if other else 0.0


def table(rows: Sequence[Row], figures: Sequence[str] = FIGURES) -> str:
    """A line a data set, size and setting: means over seeds, with the largest distance from it behind ±."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["data"], row["size"], row["family"], row["method"], row["setting"]].append(row)
    lines = [f"| data | edits | modules | method | setting | seeds | {' | '.join(figures)} |", "|" + "---|" * (6 + len(figures))]
    for key, group in sorted(groups.items()):
        cells = [*map(str, key), str(len(group)), *(_cell([row.get(name) for row in group]) for name in figures)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = statistics.fmean(known)
    spread = max(abs(value - mean) for value in known)
    return f"{mean:.3f}" + (f" ± {spread:.3f}" if len(known) > 1 else "")


def samples(row: Row) -> str:
    """Before and after, as they come."""
    lines = [f"{row['data']}, {row['size']} edits, {row['setting']}", "", "| prompt | target | before | after |", "|---|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {' | '.join(_one_line(sample[k]) for k in ('prompt', 'target', 'before', 'after'))} |" for sample in row["samples"])]
    )


def _one_line(text: str, width: int = 90) -> str:
    flat = " ".join(text.replace("|", "/").split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def plot_frontier(rows: Sequence[Row], path: Path) -> None:
    """Efficacy and generalization over retention, a point a setting and a marker a family, one column a data set and size."""
    columns = sorted({(row["data"], row["size"]) for row in rows})
    families = sorted({row["family"] for row in rows})
    figure, axes = plt.subplots(2, max(1, len(columns)), figsize=(5 * max(1, len(columns)), 8), squeeze=False)
    for column, (data, size) in enumerate(columns):
        shown = [row for row in rows if (row["data"], row["size"]) == (data, size)]
        for line, name in enumerate(("efficacy", "generalization")):
            axis = axes[line][column]
            top = 1 if name == "efficacy" else 1.1 * max(row[name] for row in shown)
            for family, marker in zip(families, "osD^vPX", strict=False):
                for kind, colour in _COLOURS.items():
                    chosen = [r for r in shown if (r["family"], _kind(r)) == (family, kind)]
                    axis.scatter(
                        [r["locality_retention"] for r in chosen], [r[name] for r in chosen], c=colour, marker=marker, label=f"{kind}, {family}"
                    )
            axis.set(title=f"{data}, {size} edits", xlabel="retention", ylabel=name, xlim=(0, 1), ylim=(0, top))
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_peers(rows: Sequence[Row], path: Path) -> None:
    """What each peer teaches over what it leaves as it was, a point a measurement: right answers, and right answers to rephrased questions."""
    in_chat = all("chat" in row for row in rows)
    taught, kept = (("chat", "chat_rephrase"), "chat_retention") if in_chat else (("efficacy", "generalization"), "locality_retention")
    titles = ("the target alone, in chat", "the same, rephrased") if in_chat else ("target tokens, as typed", "the same, rephrased")
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6))
    families = sorted({row["family"] for row in rows})
    for axis, name, title in zip(axes, taught, titles, strict=True):
        for number, family in enumerate(families):
            own = [row for row in rows if row["family"] == family]
            growth = statistics.fmean(row["perplexity_growth"] for row in own)
            label = family if family == "retrieval" else f"{family}, perplexity x {growth:.2f}"
            axis.scatter([row[kept] for row in own], [row[name] for row in own], c=f"C{number}", marker="osD^vPX*"[number % 8], s=60, label=label)
        axis.set(title=title, xlabel="answers of neighbours that stay", ylabel="share right", xlim=(0, 1.02), ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _kind(row: Row) -> str:
    return f"{row['method']}{', at the subject too' if 'subject_modules' in row['setting'] else ''}"
