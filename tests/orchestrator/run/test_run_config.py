"""Defaults, then the file, then the flags; and every unusable value is named with the file that it stands in."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from editing import InputError
from orchestrator.run.run_config import RunConfig

NEEDED = {"model": "m", "edits": "e", "output": "o"}


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., RunConfig]:
    """Builds a configuration from the text of a file and flags."""

    def build(text: str | bytes | None, **flags: Any) -> RunConfig:
        file = tmp_path / "run.yaml"
        if text is not None:
            file.write_bytes(text.encode() if isinstance(text, str) else text)
        return RunConfig.build({**NEEDED, **flags}, file if text is not None else None)

    return build


def test_flags_win_over_the_file_and_the_file_over_the_defaults(build: Callable[..., RunConfig]) -> None:
    config = build("edits_per_turn: 30\ngroup-size: 5\noverwrite: true\nseed: 3\nmodel: from-file", edits_per_turn=20, model="from-flag", seed=None)
    assert (config.edits_per_turn, config.group_size, config.lookahead) == (20, 5, None)
    assert (config.model, config.seed, config.overwrite) == ("from-flag", 3, True)
    assert build("overwrite: true\neval: true", overwrite=None, eval=False).overwrite
    assert not build("eval: true", eval=False).eval


@pytest.mark.parametrize("text", ["1e-6", "1.0e-6", "0.000001", "'1e-6'"])
def test_a_small_learning_rate_may_be_written_in_any_way(text: str, build: Callable[..., RunConfig]) -> None:
    assert build(f"learning_rate: {text}").learning_rate == 1e-6


@pytest.mark.parametrize(
    "text", ["modules: 'a.{1..2}.{x,y}, b'", "modules: ['a.{1..2}.{x,y}', b]", "modules:\n- a.{1..2}.{x,y}\n- b"], ids=["text", "list", "lines"]
)
def test_modules_in_a_file_are_one_text_or_a_list(text: str, build: Callable[..., RunConfig]) -> None:
    assert build(text).modules == ("a.{1..2}.{x,y}", "b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("edits_per_trun: 30", ["unknown key 'edits_per_trun'", "edits_per_turn"]),
        ("- a\n- b", ["expected keys and values", "found list"]),
        ("just a text", ["expected keys and values", "found str"]),
        ("", ["expected keys and values", "found nothing"]),
        ("a: [", ["is not YAML", "line 1"]),
        (b"a: \xff", ["is not YAML"]),
        ("edits_per_turn: many", ["edits_per_turn", "whole number of at least 1", "'many'"]),
        ("edits_per_turn: 2.5", ["edits_per_turn", "whole number", "2.5"]),
        ("edits_per_turn: true", ["edits_per_turn", "whole number", "True"]),
        ("edits_per_turn: null", ["edits_per_turn", "whole number", "None"]),
        ("limit: 0", ["limit", "at least 1"]),
        ("seed: -1", ["seed", "at least 0"]),
        ("learning_rate: fast", ["learning_rate", "'fast'"]),
        ("learning_rate: .nan", ["learning_rate", "above 0", "nan"]),
        ("learning_rate: .inf", ["learning_rate", "above 0", "inf"]),
        ("learning_rate: [1]", ["learning_rate", "[1]"]),
        ("dtype: int8", ["dtype", "bfloat16", "'int8'"]),
        ("format: csv", ["format", "counterfact", "'csv'"]),
        ("moments: [exact]", ["moments", "published"]),
        ("modules: 5", ["modules", "[5]"]),
        ("preserve_text: 5", ["preserve_text", "everyday", "5"]),
        ("subject_modules: 5", ["subject_modules", "(5,)"]),
        ("modules: []", ["modules", "[]"]),
        ("modules: [a, {b: c}]", ["modules", "'b'"]),
        ("preset: none-such", ["preset", "'none-such'", "gemma-3-270m"]),
        ("preset: [gemma-3-270m]", ["preset"]),
        ("strict: maybe", ["strict", "true or false", "'maybe'"]),
        ("eval: 0", ["eval", "true or false"]),
        ("device: 0", ["device", "expected a non-empty string"]),
        ("tracking_uri: null", ["tracking_uri", "expected a non-empty string"]),
    ],
)
def test_an_unusable_file_is_refused_by_name_key_and_value(text: str, words: list[str], build: Callable[..., RunConfig], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        build(text)
    message = str(caught.value)
    assert [word for word in (f"{tmp_path / 'run.yaml'}: ", *words) if word not in message] == [], message
    assert len(message.splitlines()) == 1


def test_an_unusable_flag_is_not_blamed_on_the_file(build: Callable[..., RunConfig]) -> None:
    with pytest.raises(InputError, match=r"^limit: expected a whole number"):
        build("limit: 5", limit=0)


def test_a_missing_file_or_option_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        RunConfig.build({}, tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        RunConfig.build({}, tmp_path)
    (tmp_path / "run.yaml").write_text("model: m")
    with pytest.raises(InputError, match=r"edits: missing; give --edits or set it in .*run\.yaml"):
        RunConfig.build({}, tmp_path / "run.yaml")


def test_every_flag_of_the_command_line_is_a_key_of_the_file() -> None:
    from orchestrator.cli.main import edit

    flags = {parameter.name for parameter in edit.params} - {"config_file", "resume"}
    assert flags == {field.name for field in fields(RunConfig)}


def test_what_was_resolved_is_what_run_json_gets(build: Callable[..., RunConfig]) -> None:
    config = build("modules: a\nlearning_rate: 1e-6")
    assert config.as_dict() == {
        **{f.name: f.default for f in fields(RunConfig)},
        **NEEDED,
        "modules": ("a",),
        "learning_rate": 1e-6,
        "tracking_uri": f"sqlite:///{Path.cwd()}/mlflow.db",
    }


def test_a_run_takes_file_and_flags_together(
    tmp_path: Path, llama_tiny: Path, ultraedit: Callable[..., Any], write_jsonl: Callable[..., Path]
) -> None:
    edits = write_jsonl(tmp_path / "edits.jsonl", [{"prompt": f"The capital of {c} is", "target": "Rome"} for c in "ABCDE"])
    settings = ["learning-rate: 1e-3", "modules: model.layers.1.mlp.up_proj", "edits_per_turn: 2", "tracking_uri: none", "eval: false", "limit: 4"]
    (tmp_path / "run.yaml").write_text("\n".join([f"model: {llama_tiny / 'model'}", f"edits: {edits}", f"output: {tmp_path / 'out'}", *settings]))
    outcome = ultraedit("edit", "--config", tmp_path / "run.yaml", "--limit", "3")
    assert outcome.code == 0, outcome.stderr
    assert "3 edits in 2 turns" in outcome.stdout
