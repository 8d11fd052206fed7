"""The fixtures of the published implementation (tests/data/README.md), and how far an editor and the command line are from them."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from editing import Editor, EditRequest
from tests.support.command_line import run_command_line
from tests.support.paths import PARITY

FIXTURES = ("llama-tiny", "gptj-tiny")
METRICS = {"efficacy": "ES", "generalization": "GS", "specificity": "LS"}
"""This project's metrics, and what the published implementation calls them."""


@dataclass(frozen=True)
class TurnErrors:
    """Relative errors of one turn.

    Attributes:
        turn: From 0.
        shifts: By module.
        statistics: Of mean and deviation, by shape.
        counts_agree: Whether as many rows have been counted.
    """

    turn: int
    shifts: dict[str, float]
    statistics: dict[str, float]
    counts_agree: bool


@dataclass(frozen=True)
class RunErrors:
    """Errors of a whole run: relative ones of the total shifts by module, absolute ones of the metrics."""

    shifts: dict[str, float]
    metrics: dict[str, float]


def editor_of(fixture: str, **options: Any) -> Editor:
    """An editor of a fixture's model with its settings."""
    run = settings_of(fixture)
    given = {"edits_per_turn": run["edits_per_turn"], "group_size": run["batch_size"], **options}
    return Editor.from_pretrained(PARITY / fixture / "model", modules=run["edit_modules"], learning_rate=run["lr"], **given)


def requests_of(fixture: str) -> list[EditRequest]:
    """A fixture's edits, without their probes."""
    return [EditRequest(e["prompt"], e["ans"]) for e in json.loads((PARITY / fixture / "edits.json").read_text())]


def settings_of(fixture: str) -> dict[str, Any]:
    """What the published implementation was run with, and its metrics."""
    found: dict[str, Any] = json.loads((PARITY / fixture / "run.json").read_text())
    return found


def errors_by_turn(fixture: str, **options: Any) -> Iterator[TurnErrors]:
    """Edit a fixture turn by turn, and compare each turn's shifts and the statistics after it.

    Args:
        fixture: Its name.
        options: Of :meth:`editing.Editor.from_pretrained`.
    """
    run, expected, requests = settings_of(fixture), load_file(PARITY / fixture / "expected.safetensors"), requests_of(fixture)
    editor, per_turn = editor_of(fixture, **options), run["edits_per_turn"]
    for t in range(run["turns"]):
        before = {name: m.weight.double().clone() for name, m in editor.modules.items()}
        editor.apply(requests[t * per_turn : (t + 1) * per_turn])
        shifts = {name: relative_error((m.weight.double() - before[name]).T, expected[f"turn{t}.shift.{name}"]) for name, m in editor.modules.items()}
        statistics, agree = {}, True
        for shape, moments in editor.moments.items():
            prefix = f"turn{t}.normalizer.{shape}"
            agree &= moments.count == int(expected[f"{prefix}.n"])
            statistics[f"mean {shape}"] = relative_error(moments.mean, expected[f"{prefix}.mean"])
            statistics[f"std {shape}"] = relative_error(moments.std, expected[f"{prefix}.std"])
        yield TurnErrors(t, shifts, statistics, agree)


def errors_of_run(fixture: str, out: Path, *options: object) -> RunErrors:
    """Edit a fixture by the command line.

    Args:
        fixture: Its name.
        out: Folder of the run.
        options: Further ones of ``ultraedit edit``.
    """
    folder, run = PARITY / fixture, settings_of(fixture)
    flags = ["--modules", ",".join(run["edit_modules"]), "--learning-rate", run["lr"], "--edits-per-turn", run["edits_per_turn"]]
    flags += ["--group-size", run["batch_size"], "--dtype", "float32", "--tracking-uri", "none", "--generate", 0]
    outcome = run_command_line("edit", "--model", folder / "model", "--edits", folder / "edits.json", "--output", out, *flags, *options)
    assert outcome.code == 0, outcome.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    expected, before, after = load_file(folder / "expected.safetensors"), _weights(folder / "model"), _weights(out / "model")
    shifts = {}
    for module in run["edit_modules"]:
        total = torch.stack([expected[f"turn{t}.shift.{module}"].double() for t in range(run["turns"])]).sum(0)
        shifts[module] = relative_error((after[f"{module}.weight"].double() - before[f"{module}.weight"].double()).T, total)
    return RunErrors(shifts, {ours: abs(metrics[ours] - run["metrics"][theirs]) for ours, theirs in METRICS.items()})


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected, in float64 on the CPU."""
    wanted = expected.double().cpu()
    return float((found.double().cpu() - wanted).norm() / wanted.norm())


def worst(errors: Mapping[str, float]) -> float:
    """The largest error. One that is not a number is the largest."""
    return max(errors.values(), key=lambda error: (math.isnan(error), error))


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
