"""A run that keeps the edited weights alone, and the model that they make of its base."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from orchestrator.cli.main import main
from tests.support.paths import PARITY

MODEL = PARITY / "llama-tiny" / "model"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    shared = ["edit", "--model", str(MODEL), "--edits", str(PARITY / "llama-tiny" / "edits.json"), "--modules", "model.layers.{1,2}.mlp.down_proj"]
    shared += ["--learning-rate", "1e-3", "--edits-per-turn", "20", "--tracking-uri", "none", "--no-eval"]
    for save in ("full", "delta"):
        assert main([*shared, "--save", save, "--output", str(folder / save)]) == 0
    return folder


def weights(folder: Path) -> dict[str, bytes]:
    return {k: t.numpy().tobytes() for path in folder.glob("*.safetensors") for k, t in load_file(path).items()}


def test_a_delta_applied_to_its_base_is_the_edited_model(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not (runs / "delta" / "model").exists()
    assert len(load_file(runs / "delta" / "delta" / "edited.safetensors")) == 2
    assert main(["apply", str(runs / "delta"), "--output", str(tmp_path / "made")]) == 0
    assert weights(tmp_path / "made") == weights(runs / "full" / "model")
    assert (tmp_path / "made" / "tokenizer.json").is_file()
    assert str(tmp_path / "made") in capsys.readouterr().out


def test_a_delta_is_refused_by_another_base(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["apply", str(runs / "delta" / "delta"), "--base", str(runs / "full" / "model"), "--output", str(tmp_path / "made")]
    assert main(arguments) == 1
    assert "is not the model that" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["missing", "about", "weights", "there"])
def test_what_cannot_be_applied_is_one_line(runs: Path, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    delta, made = tmp_path / "delta", tmp_path / "made"
    if damage != "missing":
        shutil.copytree(runs / "delta" / "delta", delta)
    if damage == "about":
        (delta / "delta.json").write_text(json.dumps({"base": 3}))
    if damage == "weights":
        content = (delta / "edited.safetensors").read_bytes()
        (delta / "edited.safetensors").write_bytes(content[: len(content) // 2])
    if damage == "there":
        made.mkdir()
    assert main(["apply", str(delta), "--output", str(made)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} <= {"delta", "made"}
    assert damage == "there" or not made.exists()
