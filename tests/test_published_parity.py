"""The command line reproduces the published implementation's numbers (tests/data/README.md)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from editing import Editor, EditRequest
from editing.config import EditorConfig
from orchestrator.cli.main import main
from tests.support.paths import PARITY

FIXTURES = ("llama-tiny", "gptj-tiny")


def total_shift(expected: dict[str, torch.Tensor], module: str, turns: int) -> torch.Tensor:
    return sum(expected[f"turn{t}.shift.{module}"].double() for t in range(turns))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("options", [[], ["--batch-tokens", "1"], ["--batch-tokens", "64", "--lookahead", "1"], ["--lookahead", "3"]], ids=" ".join)
@pytest.mark.parametrize("fixture", FIXTURES)
def test_command_line_reproduces_published_shifts_and_metrics(fixture: str, options: list[str], tmp_path: Path) -> None:
    folder = PARITY / fixture
    run = json.loads((folder / "run.json").read_text())
    out = tmp_path / "run"
    code = main(
        ["edit", "--model", str(folder / "model"), "--edits", str(folder / "edits.json"), "--output", str(out)]
        + ["--modules", ",".join(run["edit_modules"]), "--learning-rate", str(run["lr"])]
        + ["--edits-per-turn", str(run["edits_per_turn"]), "--group-size", str(run["batch_size"])]
        + ["--dtype", "float32", "--tracking-uri", "none", "--generate", "0", *options]
    )
    assert code == 0
    metrics = json.loads((out / "metrics.json").read_text())
    for ours, theirs in (("efficacy", "ES"), ("generalization", "GS"), ("specificity", "LS")):
        assert metrics[ours] == pytest.approx(run["metrics"][theirs], abs=1e-6)
    expected = load_file(folder / "expected.safetensors")
    before, after = _weights(folder / "model"), _weights(out / "model")
    for module in run["edit_modules"]:
        shift = (after[f"{module}.weight"].double() - before[f"{module}.weight"].double()).T
        assert relative_error(shift, total_shift(expected, module, run["turns"])) < 1e-4


@pytest.mark.parametrize("solve", ["row", "d_in"])
@pytest.mark.parametrize("fixture", FIXTURES)
def test_every_turn_matches_in_shift_and_statistics_with_both_solve_forms(fixture: str, solve: str) -> None:
    folder = PARITY / fixture
    run = json.loads((folder / "run.json").read_text())
    expected = load_file(folder / "expected.safetensors")
    editor = _editor(folder, solve=solve)
    edits = json.loads((folder / "edits.json").read_text())
    per_turn = run["edits_per_turn"]
    for t in range(run["turns"]):
        before = {name: m.weight.double().clone() for name, m in editor.modules.items()}
        editor.apply([EditRequest(e["prompt"], e["ans"]) for e in edits[t * per_turn : (t + 1) * per_turn]])
        for name, module in editor.modules.items():
            # later turns start from weights that already differ by rounding
            assert relative_error((module.weight.double() - before[name]).T, expected[f"turn{t}.shift.{name}"].double()) < (1e-5 if t == 0 else 1e-3)
        for shape, moments in editor.moments.items():
            prefix = f"turn{t}.normalizer.{shape}"
            assert moments.count == int(expected[f"{prefix}.n"])
            assert relative_error(moments.mean, expected[f"{prefix}.mean"].double()) < 1e-3
            assert relative_error(moments.std, expected[f"{prefix}.std"].double()) < 1e-3


def _editor(folder: Path, **options: object) -> Editor:
    run = json.loads((folder / "run.json").read_text())
    return Editor.from_pretrained(
        folder / "model",
        modules=run["edit_modules"],
        learning_rate=run["lr"],
        edits_per_turn=run["edits_per_turn"],
        group_size=run["batch_size"],
        **options,
    )


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_the_fixtures_are_the_default_configuration_otherwise() -> None:
    config = EditorConfig(modules=("x",), learning_rate=1.0)
    assert (config.edits_per_turn, config.group_size, config.moments, config.ridge) == (100, 10, "published", 1.0)
