"""Everything that only a GPU can show, in one table: ``make gpu-check``, made for ten minutes on one card, without a network.

python -m tests.benchmarks.gpu_check [--device cuda|cpu] [--small] [--only CHECK] [--scratch DIR] [--output FILE]

The exit code is 1 if a check failed or there is no GPU. ``--device cpu --small`` shows on any machine that the checks run.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import click
import torch

from editing.version import __version__
from orchestrator.cli.libraries import ready_libraries
from tests.benchmarks import device_models, device_numbers, device_speed
from tests.benchmarks.device_rows import Check, Row, Setting, as_line, as_table, run_check
from tests.benchmarks.workload import machine_line

CHECKS: dict[str, Check] = {
    "flags": device_numbers.flags,
    "process": device_models.process,
    "parity": device_numbers.parity,
    "against the CPU": device_numbers.against_cpu,
    "precision": device_numbers.precision,
    "same bits": device_numbers.same_bits,
    "solves": device_speed.solves,
    "turns": device_speed.turns,
    "demo": device_models.demo,
    "random 7B": device_models.random_7b,
    "ranks": device_models.ranks,
}


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--small", is_flag=True, help="Tiny shapes: a minute on a CPU.")
@click.option("--only", type=click.Choice(list(CHECKS)), multiple=True, help="One check; may be given again.")
@click.option("--scratch", type=click.Path(path_type=Path, file_okay=False), help="Where a temporary folder for 20 GB of models is made.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), default=Path("runs/gpu-check.json"), show_default=True)
def main(device: str, small: bool, only: tuple[str, ...], scratch: Path | None, output: Path) -> None:
    """Run the checks, print a table, write JSON."""
    if device == "cuda" and not torch.cuda.is_available():
        click.echo(f"error: torch {torch.__version__} sees no CUDA device; --device cpu --small shows that the checks run", err=True)
        sys.exit(1)
    ready_libraries()  # with the flags that the command line sets
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=scratch, prefix="gpu-check-") as folder:
        setting = Setting(torch.device(device, 0) if device == "cuda" else torch.device(device), small, Path(folder))
        rows = _run([name for name in CHECKS if not only or name in only], setting)
    report = describe(setting, rows, time.perf_counter() - began)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    counts = ", ".join(f"{sum(row.result == result for row in rows)} {result}" for result in ("passed", "failed", "skipped", "noted"))
    click.echo(f"\n{report['device']}, torch {report['torch']}: {counts}, in {report['seconds']:.0f} s; written to {output}")
    sys.exit(int(any(row.result == "failed" for row in rows)))


def _run(names: Sequence[str], setting: Setting) -> list[Row]:
    """All rows, each of them printed when it is there."""
    rows: list[Row] = []
    click.echo(as_table([]))
    for name in names:
        for row in run_check(name, CHECKS[name], setting):
            click.echo(as_line(row))
            rows.append(row)
    return rows


def describe(setting: Setting, rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    """What is written: where it ran, with what, and every row."""
    properties = torch.cuda.get_device_properties(setting.device) if setting.is_gpu else None
    return {
        "device": properties.name if properties else "cpu",
        "device_memory": properties.total_memory if properties else None,
        "machine": machine_line(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "project": __version__,
        "date": date.today().isoformat(),
        "small": setting.small,
        "seconds": seconds,
        "rows": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    main()
