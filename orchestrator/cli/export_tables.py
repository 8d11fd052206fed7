"""What an export kept and lost, as tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.cli.console import Screen
from orchestrator.cli.tables import Column, Sheet

_STATES = (("before", "before"), ("full_edit", "full edit"), ("exported", "exported"))


def show_export(certificate: Mapping[str, Any], folder: Path, screen: Screen) -> None:
    """Print a certificate."""
    modules = certificate["modules"]
    adapter = all("rank" in module for module in modules.values())
    columns = ("rank", "kept", "error") if adapter else ("rounding",) if all("rounding" in module for module in modules.values()) else ()
    sheet = Sheet("module", Column("shape", right=True), *(Column(name, right=True) for name in columns))
    for name, module in modules.items():
        sheet.add(name, f"{module['d_in']} -> {module['d_out']}", *(_number(name_, module[name_]) for name_ in columns))
    screen.print(sheet)
    if metrics := certificate["metrics"]:
        screen.print()
        measured = Sheet("", *(Column(title, right=True) for _, title in _STATES))
        for name in metrics["exported"]:
            measured.add(name, *(_metric(metrics[state][name]) for state, _ in _STATES))
        screen.print(measured)
    size = sum(file["bytes"] for file in certificate["files"].values())
    edits = certificate["edits"]
    measured_on = f", measured on {metrics['edits']}" if metrics else ""
    screen.print()
    screen.print(f"{folder}: {certificate['form']}, {size / 1e6:.1f} MB, {edits['count']} edits{measured_on}", soft_wrap=True)


def _number(name: str, value: float) -> str:
    return str(value) if name == "rank" else f"{value:.6f}" if name == "kept" else f"{value:.1e}"


def _metric(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
