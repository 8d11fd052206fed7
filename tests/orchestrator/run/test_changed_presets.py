"""A run goes on as it began, though the presets that ship with the project are others by now."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from editing.presets import unmeasured
from tests.support.command_line import Outcome
from tests.support.tiny_runs import MODEL, write_records

FACTS = [{"prompt": "The capital of Kiribati is", "target": "Oslo"}, {"prompt": "A markhor is a kind of", "target": "fish"}]


def _edit(folder: Path, edits: list[dict[str, str]], *more: object) -> list[object]:
    file = write_records(folder / f"{len(edits)}.jsonl", edits)
    quiet = ["--tracking-uri", "none", "--no-eval", "--generate", 0, "--perplexity-text", "none", "--edits-per-turn", 2]
    return ["edit", "--model", MODEL, "--edits", file, "--output", folder / "out", *quiet, *more]


def _method(folder: Path) -> tuple[object, ...]:
    model = json.loads((folder / "out" / "run.json").read_text())["model"]
    return model["modules"], model["method"], model["preset"]


@pytest.mark.parametrize("appended", [["--resume", "auto"], ["--resume", "auto", "--passes", "4"]], ids=["nothing given", "the same given"])
def test_one_that_ships_may_have_changed(
    appended: list[str], tmp_path: Path, ultraedit: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = "model.layers.{}"
    monkeypatch.setattr(unmeasured, "modules_for", lambda _: ([f"{layers.format(2)}.self_attn.o_proj"], [f"{layers.format(0)}.mlp.down_proj"]))
    assert ultraedit(*_edit(tmp_path, FACTS[:1])).code == 0
    before = _method(tmp_path)
    monkeypatch.setitem(unmeasured.OPTIONS, "passes", 1)
    monkeypatch.setitem(unmeasured.OPTIONS, "preserve_neighbours", 7)
    monkeypatch.setattr(unmeasured, "modules_for", lambda _: ([f"{layers.format(1)}.mlp.down_proj"], []))
    outcome = ultraedit(*_edit(tmp_path, FACTS, *appended))
    assert outcome.code == 0, outcome.errors
    assert _method(tmp_path) == before
    assert before[1]["passes"] == 4


@pytest.mark.parametrize(
    ("appended", "says"),
    [(["--learning-rate", "1e-3"], "learning_rate was None"), (["--passes", "2"], "passes was 4"), (["--strength", "0.05"], "strength was 0.1")],
)
@pytest.mark.parametrize("where", ["by its folder", "as output"])
def test_what_is_given_anew_is_not_overruled(appended: list[str], says: str, where: str, tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    assert ultraedit(*_edit(tmp_path, FACTS[:1])).code == 0
    command = _edit(tmp_path, FACTS, "--resume", "auto", *appended)
    if where == "by its folder":
        command = ["edit", "--resume", tmp_path / "out", "--edits", tmp_path / "2.jsonl", *appended]
    outcome = ultraedit(*command)
    assert outcome.code == 1
    assert says in outcome.errors[0]


@pytest.mark.parametrize("where", ["by its folder", "as output"])
def test_another_preset_is_refused(where: str, tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    assert ultraedit(*_edit(tmp_path, FACTS[:1])).code == 0
    modules = json.loads((tmp_path / "out" / "run.json").read_text())["model"]["modules"]
    other = tmp_path / "own.yaml"
    other.write_text(yaml.safe_dump({"format_version": 1, "source": "own", "modules": modules, "learning_rate": 1e-3}))
    command = _edit(tmp_path, FACTS, "--resume", "auto", "--preset", other)
    if where == "by its folder":
        command = ["edit", "--resume", tmp_path / "out", "--edits", tmp_path / "2.jsonl", "--preset", other]
    assert ultraedit(*command).code == 1


def test_a_preset_in_a_file_is_its_owners_to_change(tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    preset = tmp_path / "own.yaml"
    values = {"format_version": 1, "source": "own", "modules": ["layers.1.mlp.down_proj"], "learning_rate": 1e-3}
    preset.write_text(yaml.safe_dump(values))
    assert ultraedit(*_edit(tmp_path, FACTS[:1], "--preset", preset)).code == 0
    preset.write_text(yaml.safe_dump({**values, "learning_rate": 2e-3}))
    outcome = ultraedit(*_edit(tmp_path, FACTS, "--preset", preset, "--resume", "auto"))
    assert outcome.code == 1
    assert "learning_rate was 0.001" in outcome.errors[0]
