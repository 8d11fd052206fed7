"""The baseline is the published method, and the editor with all its fast paths gives the baseline's weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from editing import Editor, EditorConfig
from editing.datasets import EditFile, NumberedRequest
from editing.files import pretrained
from editing.turn import TokenizedEdit, in_turns, tokenize
from tests.benchmarks.baseline import BaselineEditor
from tests.benchmarks.whole_job import PHASES, run_here, run_plainly
from tests.benchmarks.workload import Workload
from tests.support.paths import PARITY

FIXTURE = PARITY / "llama-tiny"


def load_model() -> tuple[Any, Any]:
    return pretrained.load(FIXTURE / "model", device=torch.device("cpu"), dtype="float32")


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return json.loads((FIXTURE / "run.json").read_text())


@pytest.fixture(scope="module")
def edits(settings: dict[str, Any]) -> list[TokenizedEdit]:
    tokenizer = load_model()[1]
    requests = [r.request for r in EditFile(FIXTURE / "edits.json") if isinstance(r, NumberedRequest)]
    assert len(requests) == settings["turns"] * settings["edits_per_turn"]
    return [tokenize(tokenizer, request, max_tokens=None) for request in requests]


@pytest.fixture(scope="module")
def baseline_shifts(settings: dict[str, Any], edits: list[TokenizedEdit], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Total shift of each module after all turns of the baseline, ``(d_out, d_in)``."""
    model = load_model()[0]
    folder = tmp_path_factory.mktemp("rows")
    baseline = BaselineEditor(model, settings["edit_modules"], learning_rate=settings["lr"], group_size=settings["batch_size"], folder=folder)
    before = {name: m.weight.detach().clone() for name, m in baseline.modules.items()}
    size = settings["edits_per_turn"]
    for a in range(0, len(edits), size):
        baseline.apply_turn([edit.sequence for edit in edits[a : a + size]])
    return {name: m.weight.detach() - before[name] for name, m in baseline.modules.items()}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def test_baseline_gives_the_published_shifts(settings: dict[str, Any], baseline_shifts: dict[str, Tensor]) -> None:
    expected = load_file(FIXTURE / "expected.safetensors")
    for name, found in baseline_shifts.items():
        total = sum(expected[f"turn{t}.shift.{name}"] for t in range(settings["turns"]))
        assert relative_error(found, total.T) < 1e-4, name


def test_editor_gives_the_baselines_weights(settings: dict[str, Any], edits: list[TokenizedEdit], baseline_shifts: dict[str, Tensor]) -> None:
    config = EditorConfig(
        modules=tuple(settings["edit_modules"]),
        learning_rate=settings["lr"],
        edits_per_turn=settings["edits_per_turn"],
        group_size=settings["batch_size"],
    )
    editor = Editor(*load_model(), config)
    before = {name: m.weight.detach().clone() for name, m in editor.modules.items()}
    for prepared in editor.prepare(list(in_turns(edits, config.edits_per_turn))):
        editor.apply_turn(prepared, measure=False)
    for name, module in editor.modules.items():
        assert relative_error(module.weight.detach() - before[name], baseline_shifts[name]) < 1e-4, name


def test_a_whole_job_gives_the_metrics_of_plain_work(tmp_path: Path, settings: dict[str, Any]) -> None:
    preset = {"format_version": 1, "source": "the fixture", "modules": settings["edit_modules"], "learning_rate": settings["lr"]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(preset))
    sizes = {"num_turns": 2, "edits_per_turn": settings["edits_per_turn"]}
    workload = Workload(model=str(FIXTURE / "model"), edits=FIXTURE / "edits.json", preset=str(tmp_path / "own.yaml"), **sizes)
    here, plain = run_here(workload, tmp_path), run_plainly(workload, tmp_path)
    assert here.metrics == pytest.approx(plain.metrics, abs=1e-9)
    assert plain.metrics["efficacy"] > 0
    for job in (here, plain):
        assert all(seconds > 0 for seconds in job.seconds.values())
        assert sum(job.seconds[phase] for phase in PHASES) <= job.seconds["total"]
