"""A run that was started with relative paths is gone on with from any folder; what is not found is named with where it was looked for."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.run.run_config import RunConfig
from orchestrator.tracking_database import absolute_uri, database_of
from tests.support.command_line import Outcome

ROOT = Path(__file__).parents[3]
OLD = ROOT / "tests" / "data" / "run-0.1.0" / "finished"
MODEL = ROOT / "tests" / "data" / "parity" / "llama-tiny" / "model"
FLAGS = ["--edits-per-turn", 2, "--checkpoint-every", 1, "--keep", 9, "--generate", 0, "--save", "delta"]
PRESET = {"modules": ["layers.1.mlp.down_proj"], "learning_rate": 1e-3, "source": "a test", "preserve": "exact"}
Ultraedit = Callable[..., Outcome]


def facts(path: Path, *countries: str) -> Path:
    records = [{"id": country, "prompt": f"The capital of {country} is", "target": "Rome"} for country in countries]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder with everything that a run needs, which is the working directory, and an empty one."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    shutil.copytree(MODEL, here / "models" / "tiny")
    facts(here / "facts.jsonl", *"ABCDEFGH")
    (here / "preset.yaml").write_text(yaml.safe_dump(PRESET))
    (here / "text.txt").write_text("the sea is cold in winter")
    monkeypatch.chdir(here)
    return here, elsewhere


@pytest.fixture
def run(places: tuple[Path, Path], ultraedit: Ultraedit) -> Path:
    """A run of four turns, every input of which was given relative."""
    inputs = ["--model", "models/tiny", "--edits", "facts.jsonl", "--preset", "preset.yaml", "--preserve-text", "text.txt"]
    outcome = ultraedit("edit", *inputs, "--output", "out", "--tracking-uri", "none", *FLAGS)
    assert outcome.code == 0, outcome.stderr
    return places[0] / "out"


@pytest.fixture
def elsewhere(places: tuple[Path, Path], run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a later call."""
    monkeypatch.chdir(places[1])
    return places[1]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_every_input_is_stored_as_an_absolute_path_with_its_digest(run: Path, places: tuple[Path, Path]) -> None:
    here, described = places[0], read(run / "run.json")
    found = {name: described["config"][name] for name in ("model", "edits", "preset", "preserve_text")}
    assert found == {
        "model": str(here / "models" / "tiny"),
        "edits": str(here / "facts.jsonl"),
        "preset": str(here / "preset.yaml"),
        "preserve_text": str(here / "text.txt"),
    }
    assert described["input"]["path"] == str(here / "facts.jsonl")
    assert described["input"]["sha256"] == hashlib.sha256((here / "facts.jsonl").read_bytes()).hexdigest()
    assert len(described["base_fingerprint"]) == len(described["model"]["preserve_text_sha256"]) == 64
    assert read(run / "delta" / "delta.json")["base"] == str(here / "models" / "tiny")


@pytest.mark.parametrize("command", [["rollback", "--to-turn", 2], ["remove", "--edit", "C"]], ids=lambda command: command[0])
def test_a_run_is_replayed_from_another_folder(command: list[object], run: Path, elsewhere: Path, ultraedit: Ultraedit) -> None:
    outcome = ultraedit(command[0], run, *command[1:])
    assert outcome.code == 0, outcome.stderr
    assert read(run / "metrics.json")["edits"] == (4 if command[0] == "rollback" else 7)


def test_a_run_is_appended_to_from_another_folder_with_edits_that_lie_there(run: Path, elsewhere: Path, ultraedit: Ultraedit) -> None:
    facts(elsewhere / "more.jsonl", "I", "J")
    outcome = ultraedit("edit", "--resume", "../here/out", "--edits", "more.jsonl")
    assert outcome.code == 0, outcome.stderr
    assert read(run / "metrics.json")["edits"] == 10
    assert read(run / "run.json")["input"]["path"] == str(elsewhere / "more.jsonl")


def test_a_delta_is_applied_from_another_folder(run: Path, elsewhere: Path, ultraedit: Ultraedit) -> None:
    outcome = ultraedit("apply", run, "--output", "made")
    assert outcome.code == 0, outcome.stderr
    assert (elsewhere / "made" / "config.json").is_file()


@pytest.mark.parametrize(
    ("gone", "command", "says"),
    [
        ("models/tiny", ["rollback", "RUN", "--to-turn", 2], "model HERE/models/tiny was not found: there is no HERE/models/tiny; give it"),
        ("models/tiny", ["remove", "RUN", "--edit", "C"], "give it with --model"),
        ("models/tiny", ["edit", "--resume", "RUN"], "give it with --model"),
        ("models/tiny", ["apply", "RUN", "--output", "made"], "was not found: there is no HERE/models/tiny; give it with --base"),
        ("facts.jsonl", ["edit", "--resume", "RUN"], "edits HERE/facts.jsonl was not found: there is no HERE/facts.jsonl; give it with --edits"),
        ("preset.yaml", ["edit", "--resume", "RUN"], "there is no HERE/preset.yaml; give it with --preset"),
        ("preset.yaml", ["rollback", "RUN", "--to-turn", 2], "there is no HERE/preset.yaml; put it there again"),
    ],
)
def test_an_input_that_is_gone_is_one_line(
    gone: str, command: list[object], says: str, run: Path, places: tuple[Path, Path], elsewhere: Path, ultraedit: Ultraedit
) -> None:
    here = places[0]
    (here / gone).rename(here / "moved")
    before = (run / "run.json").read_bytes()
    outcome = ultraedit(*(run if part == "RUN" else part for part in command))
    assert (outcome.code, len(outcome.errors)) == (1, 1), outcome.stderr
    assert says.replace("HERE", str(here)) in outcome.errors[0]
    assert (run / "run.json").read_bytes() == before
    assert not (elsewhere / "made").exists()


def test_a_model_that_was_moved_is_given_once(run: Path, places: tuple[Path, Path], elsewhere: Path, ultraedit: Ultraedit) -> None:
    (places[0] / "models" / "tiny").rename(elsewhere / "tiny")
    for turn, more in ((3, ["--model", "tiny"]), (2, [])):
        outcome = ultraedit("rollback", run, "--to-turn", turn, *more)
        assert outcome.code == 0, outcome.stderr
    assert read(run / "run.json")["config"]["model"] == str(elsewhere / "tiny")


def test_another_model_in_its_place_is_refused(run: Path, elsewhere: Path, ultraedit: Ultraedit) -> None:
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(MODEL, elsewhere / "other")
    file = next(other.glob("*00001*.safetensors"))
    save_file({name: weight * 1.01 for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    outcome = ultraedit("rollback", run, "--to-turn", 2, "--model", "other")
    assert outcome.code == 1
    assert "the base model is not the one" in outcome.errors[0]


# --- runs of 0.1.0, whose paths are as they were given


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(OLD, tmp_path / "out")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["rollback", "RUN", "--to-turn", 2], "--model"),
        (["remove", "RUN", "--edit", 3], "--model"),
        (["edit", "--resume", "RUN"], "--model"),
        (["apply", "RUN", "--output", "made"], "--base"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_an_old_run_in_another_folder_says_where_its_model_was_looked_for(
    command: list[object], option: str, old: Path, tmp_path: Path, ultraedit: Ultraedit
) -> None:
    outcome = ultraedit(*(old if part == "RUN" else part for part in command))
    assert (outcome.code, len(outcome.errors)) == (1, 1), outcome.stderr
    assert f"was not found: there is no {tmp_path / 'tests/data/parity/llama-tiny/model'}; give it with {option}" in outcome.errors[0]
    assert option == "--base" or "start the command in the folder where the run was started" in outcome.errors[0]


def test_an_old_run_goes_on_in_another_folder_with_its_model_given_once(old: Path, ultraedit: Ultraedit) -> None:
    for turn, more in ((3, ["--model", MODEL]), (2, [])):
        outcome = ultraedit("rollback", old, "--to-turn", turn, *more)
        assert outcome.code == 0, outcome.stderr
    assert ultraedit("apply", old, "--output", "made").code == 0


def test_an_old_model_that_looks_like_an_id_of_the_hub_is_not_taken_for_one(old: Path, tmp_path: Path, ultraedit: Ultraedit) -> None:
    manifest = max((old / "checkpoints").glob("turn-*")) / "manifest.json"
    values = read(manifest)
    values["state"]["config"]["model"] = "models/tiny"
    values["sha256"] = hashlib.sha256(json.dumps({k: values[k] for k in ("state", "files")}, sort_keys=True).encode()).hexdigest()
    manifest.write_text(json.dumps(values))
    outcome = ultraedit("rollback", old, "--to-turn", 2)
    assert len(outcome.errors) == 1
    assert f"the run's model models/tiny was not found: there is no {tmp_path / 'models/tiny'}; give it with --model" in outcome.errors[0]


def test_options_that_this_version_does_not_know_are_left_out_with_a_warning(old: Path, ultraedit: Ultraedit) -> None:
    manifest = max((old / "checkpoints").glob("turn-*")) / "manifest.json"
    values = read(manifest)
    values["state"]["config"]["num_clouds"] = 3
    values["sha256"] = hashlib.sha256(json.dumps({k: values[k] for k in ("state", "files")}, sort_keys=True).encode()).hexdigest()
    manifest.write_text(json.dumps(values))
    outcome = ultraedit("rollback", old, "--to-turn", 2, "--model", MODEL)
    assert outcome.code == 0, outcome.stderr
    assert "left out options that this version does not know: num_clouds" in outcome.stderr


# --- tracking


@pytest.mark.parametrize(
    ("uri", "resolved"),
    [
        ("sqlite:///mlflow.db", "sqlite:///HERE/mlflow.db"),
        ("sqlite:///runs/../mlflow.db?timeout=30", "sqlite:///HERE/mlflow.db?timeout=30"),
        ("sqlite:////shared/mlflow.db", "sqlite:////shared/mlflow.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("http://server:5000", "http://server:5000"),
        ("none", "none"),
    ],
)
def test_a_database_is_the_same_from_everywhere(uri: str, resolved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri(uri) == resolved.replace("HERE", str(tmp_path))
    assert RunConfig.build({"model": "m", "edits": "e", "output": "o", "tracking_uri": uri}).tracking_uri == absolute_uri(uri)
    assert (database_of(uri) is None) == ("db" not in uri)


@pytest.mark.thorough
def test_a_run_whose_tracking_database_is_gone_goes_on_untracked_with_a_warning(
    places: tuple[Path, Path], ultraedit: Ultraedit, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    here, elsewhere = places
    outcome = ultraedit("edit", "--model", "models/tiny", "--edits", "facts.jsonl", "--preset", "preset.yaml", "--output", "out", *FLAGS)
    assert outcome.code == 0, outcome.stderr
    assert (here / "mlflow.db").is_file()
    monkeypatch.chdir(elsewhere)
    (here / "mlflow.db").rename(here / "moved.db")
    outcome = ultraedit("rollback", here / "out", "--to-turn", 2)
    assert outcome.code == 0, outcome.stderr
    assert f"tracking: the run was tracked in {here / 'mlflow.db'}, which does not exist; this call is not tracked" in outcome.stderr
    assert not list(elsewhere.iterdir())
    assert not (here / "mlflow.db").exists()
    (here / "moved.db").rename(here / "mlflow.db")
    assert "tracking:" not in ultraedit("rollback", here / "out", "--to-turn", 1).stderr
