"""Runs on Ray as a person starts them, each with a cluster of its own."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.support.forked import ForkedRun
from tests.support.paths import PARITY
from tests.support.tiny_runs import PER_TURN

MODEL = PARITY / "llama-tiny" / "model"
EDITS = PARITY / "llama-tiny" / "edits.json"


def command(out: Path, *more: object) -> list[str]:
    settings = ["--modules", "model.layers.{1,2}.mlp.{gate,down}_proj", "--learning-rate", "1e-3", "--edits-per-turn", str(PER_TURN)]
    loop = ["--lookahead", "2", "--checkpoint-every", "2", "--tracking-uri", "none", "--no-eval", "--generate", "0"]
    edit = ["edit", "--model", str(MODEL), "--edits", str(EDITS), "--output", str(out), *settings, *loop]
    return [*edit, *map(str, more)]


def start(out: Path, *more: object, environment: Mapping[str, str] | None = None) -> ForkedRun:
    return ForkedRun(command(out, *more), environment=environment)


def finish(process: ForkedRun, timeout: float = 600) -> str:
    """What it said; it must have ended well."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # as by a person: its workers end with it
        raise
    assert process.returncode == 0, stderr
    return stdout + stderr


def digests(out: Path) -> dict[str, str]:
    return json.loads((out / "run.json").read_text())["digests_after"]


def weights(out: Path) -> dict[str, Any]:
    return {k: t for file in (out / "model").glob("*.safetensors") for k, t in load_file(file).items()}


def assert_close(found: Path, expected: Path) -> None:
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert float((ours[name].double() - weight.double()).norm() / weight.double().norm()) < 1e-5, name


def largest_difference(first: Path, second: Path) -> float:
    """Of all tensors of two checkpoints, relative to the tensor's norm."""
    a, b = _tensors(first), _tensors(second)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).norm() / b[name].norm().clamp_min(1e-30)) for name in a)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
