"""What is written to disk says its format version; a newer one than this program knows is one line, and nothing is touched."""

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from editing.files import delta
from editing.presets import FORMAT as PRESET
from editing.presets import read_preset
from orchestrator.run import checkpoint, directory, journal, ledger
from orchestrator.run.checkpoint import Checkpoint
from orchestrator.run.journal import RunState
from orchestrator.tune import trial_log
from orchestrator.tune.trial_log import TrialLog
from tests.support.command_line import Outcome

Ultraedit = Callable[..., Outcome]
OLD = Path(__file__).parents[1] / "data" / "run-0.1.0" / "finished"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, edit_flags: list[str], llama_tiny: Path, ultraedit: Ultraedit) -> Path:
    """A run of today. Read it; a test that changes it takes a copy."""
    out = tmp_path_factory.mktemp("made") / "out"
    outcome = ultraedit(*edit_flags, "--edits", llama_tiny / "edits.json", "--output", out, "--save", "delta", "--no-eval")
    assert outcome.code == 0, outcome.stderr
    return out


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "out")


def manifest(out: Path) -> Path:
    return max((out / "checkpoints").glob("turn-*")) / "manifest.json"


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    if "sha256" in values:  # a manifest's own checksum
        body = {name: value for name, value in values.items() if name != "sha256"}
        values["sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(values))


def change_ledger(out: Path, version: object) -> None:
    part = min((out / "ledger").glob("*.parquet"))
    table = pq.read_table(part)
    pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), b"format_version": str(version).encode()}), part)


def of_version(out: Path, name: str, version: object) -> None:
    """Give one format of a run another version."""
    if name == "ledger":
        change_ledger(out, version)
    elif name == "checkpoint":
        change_json(manifest(out), lambda values: values.update(format_version=version))
    elif name == "run state":
        change_json(manifest(out), lambda values: values["state"].update(format_version=version))
    else:
        change_json(out / {"run": "run.json", "delta": "delta/delta.json"}[name], lambda values: values.update(format_version=version))


FORMATS = {f.name: f for f in (checkpoint.FORMAT, journal.FORMAT, ledger.FORMAT, directory.FORMAT, delta.FORMAT, PRESET, trial_log.FORMAT)}
READERS = {
    "checkpoint": [["edit", "--resume", "RUN"], ["rollback", "RUN", "--to-turn", 1], ["remove", "RUN", "--edit", 1]],
    "run state": [["edit", "--resume", "RUN"], ["rollback", "RUN", "--to-turn", 1], ["remove", "RUN", "--edit", 1]],
    "ledger": [["history", "RUN"], ["diff", "RUN", 1, 2], ["rollback", "RUN", "--to-turn", 1], ["remove", "RUN", "--edit", 1]],
    "run": [["show", "RUN"], ["history", "RUN"], ["diff", "RUN", 1, 2], ["rollback", "RUN", "--to-turn", 1], ["remove", "RUN", "--edit", 1]],
    "delta": [["apply", "RUN", "--output", "MADE"]],
}


def assert_refused(outcome: Outcome, name: str, version: object) -> None:
    assert outcome.code == 1
    assert len(outcome.errors) == 1, outcome.stderr
    words = (f"is a {name} of format version {version}", f"can read is {FORMATS[name].version}", "install a newer version of ultraedit-orchestrator")
    assert [word for word in words if word not in outcome.errors[0]] == [], outcome.errors[0]


@pytest.mark.parametrize(
    ("name", "command"), [(n, c) for n, commands in READERS.items() for c in commands], ids=lambda v: v if isinstance(v, str) else v[0]
)
def test_a_newer_version_is_refused_in_one_line_by_every_reader(name: str, command: list[object], run: Path, ultraedit: Ultraedit) -> None:
    newer = FORMATS[name].version + 1
    of_version(run, name, newer)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    places = {"RUN": run, "MADE": run.with_name("made")}
    outcome = ultraedit(*(places.get(part, part) if isinstance(part, str) else part for part in command))
    assert_refused(outcome, name, newer)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert [path.name for path in run.parent.iterdir()] == ["out"]


def test_a_run_appended_to_is_refused_before_its_newer_run_json_is_replaced(run: Path, tmp_path: Path, ultraedit: Ultraedit) -> None:
    of_version(run, "run", FORMATS["run"].version + 1)
    (tmp_path / "more.jsonl").write_text('{"prompt": "The moon of Pluto is", "target": "Charon"}\n')
    assert_refused(ultraedit("edit", "--resume", run, "--edits", tmp_path / "more.jsonl"), "run", FORMATS["run"].version + 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["more.jsonl", "out"]


def test_a_newer_preset_file_is_refused_in_one_line(tmp_path: Path, edit_flags: list[str], llama_tiny: Path, ultraedit: Ultraedit) -> None:
    path = tmp_path / "preset.yaml"
    path.write_text(yaml.safe_dump({"format_version": PRESET.version + 1, "modules": ["layers.1.mlp.up_proj"], "learning_rate": 1.0, "source": "me"}))
    outcome = ultraedit(*edit_flags, "--edits", llama_tiny / "edits.json", "--output", tmp_path / "out", "--preset", path)
    assert_refused(outcome, "preset", PRESET.version + 1)
    assert outcome.errors[0].startswith(f"error: preset: {path}: ")


def test_a_newer_trial_log_is_refused_in_one_line(tmp_path: Path, llama_tiny: Path, ultraedit: Ultraedit) -> None:
    newer = trial_log.FORMAT.version + 1
    (tmp_path / "measurements.jsonl").write_text(json.dumps({"format_version": newer, "settings": {}}) + "\n")
    flags = ["--model", llama_tiny / "model", "--edits", llama_tiny / "edits.json", "--sample", 4, "--tracking-uri", "none", "--output", tmp_path]
    assert_refused(ultraedit("tune", *flags), "trial log", newer)


@pytest.mark.parametrize("version", ["two", 0, 1.5, True, None])
def test_a_version_that_is_no_number_is_refused_too(version: object, run: Path, ultraedit: Ultraedit) -> None:
    of_version(run, "run", version)
    outcome = ultraedit("show", run)
    assert outcome.errors == [f"error: {run / 'run.json'}: format_version: expected a whole number of at least 1, found {version!r}"]


def test_a_run_says_the_version_of_each_of_its_formats_and_of_this_program(made: Path) -> None:
    described, stored = json.loads((made / "run.json").read_text()), json.loads(manifest(made).read_text())
    assert described["format_version"] == directory.FORMAT.version
    assert described["versions"]["ultraedit"] == metadata.version("ultraedit-orchestrator")
    assert (stored["format_version"], stored["state"]["format_version"]) == (checkpoint.FORMAT.version, journal.FORMAT.version)
    assert json.loads((made / "delta" / "delta.json").read_text())["format_version"] == delta.FORMAT.version
    parts = list((made / "ledger").glob("*.parquet"))
    assert {pq.read_schema(part).metadata[b"format_version"] for part in parts} == {str(ledger.FORMAT.version).encode()}


def test_shipped_presets_and_trial_logs_say_their_versions(tmp_path: Path) -> None:
    shipped = [yaml.safe_load(f.read_text()) for f in resources.files("editing.presets").iterdir() if f.name.endswith(".yaml")]
    assert len(shipped) >= 7
    assert {values["format_version"] for values in shipped} == {PRESET.version}
    with TrialLog(tmp_path / "measurements.jsonl", {"seed": 0}):
        pass
    assert json.loads((tmp_path / "measurements.jsonl").read_text())["format_version"] == trial_log.FORMAT.version


def test_a_preset_and_a_trial_log_without_a_version_are_read(tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text("modules: [layers.1.mlp.up_proj]\nlearning_rate: 1.0\nsource: me\n")
    assert read_preset(preset).modules == ("layers.1.mlp.up_proj",)
    (tmp_path / "log.jsonl").write_text('{"settings": {"seed": 0}}\n{"key": ["rate", "a"], "learning_rate": 0.5}\n')
    with TrialLog(tmp_path / "log.jsonl", {"seed": 0}) as log:
        assert log.get("rate", "a") == {"learning_rate": 0.5}


def test_a_manifest_whose_version_was_altered_alone_is_a_damaged_one(run: Path, ultraedit: Ultraedit) -> None:
    """Its checksum covers it; a newer version would not be taken for damage."""
    text = manifest(run).read_text()
    manifest(run).write_text(text.replace(f'"format_version": {checkpoint.FORMAT.version}', '"format_version": 1', 1))
    outcome = ultraedit("rollback", run, "--to-turn", 1)
    assert "its manifest was altered" in outcome.stderr


def test_unknown_fields_of_the_same_version_are_left_out_with_a_warning(run: Path, ultraedit: Ultraedit) -> None:
    change_json(manifest(run), lambda values: values["state"].update(num_clouds=3))
    outcome = ultraedit("rollback", run, "--to-turn", 1)
    assert outcome.code == 0, outcome.stderr
    assert "that this version does not know: num_clouds" in outcome.stderr


def test_a_run_state_that_lacks_a_field_is_one_line(run: Path, ultraedit: Ultraedit) -> None:
    change_json(manifest(run), lambda values: values["state"].pop("settings"))
    outcome = ultraedit("rollback", run, "--to-turn", 1)
    assert (outcome.code, len(outcome.errors)) == (1, 1)
    assert "its run state has no field 'settings'" in outcome.errors[0]


def test_a_state_read_back_is_the_state_that_was_written() -> None:
    state = RunState(config={"a": 1}, settings={}, base_fingerprint="f", base_digests={}, source={"sha256": None}, milestones=[{"edits": 1}])
    assert RunState.from_stored(Checkpoint(Path("here"), 0, json.loads(json.dumps(state.as_stored())))) == state
