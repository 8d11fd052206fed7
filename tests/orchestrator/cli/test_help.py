"""Help says what is so, in groups, at any width."""

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, get_args

import click
import pytest

from editing.config import AnswerEnd, Join, MethodOptions, PrefixDType, SubjectTargets
from editing.datasets import FORMATS
from editing.files.pretrained import DTypeName
from editing.method.moments import MomentRule
from editing.method.preserve import PreserveForm
from editing.model.framing import shipped
from orchestrator.cli import options
from orchestrator.cli.build_command import build_command
from orchestrator.cli.edit_command import edit
from orchestrator.cli.evaluate_command import evaluate
from orchestrator.cli.main import cli
from orchestrator.cli.plan_command import plan_command
from orchestrator.cli.tune_command import tune_command
from orchestrator.data.building import BuildConfig
from orchestrator.evaluate_model import measure_model
from orchestrator.export.exporting import Form
from orchestrator.plan_model import PlanOptions
from orchestrator.run.run_config import OnCollapse, RunConfig, Save
from orchestrator.tune.pipeline import TuneConfig
from orchestrator.tune.search import Objective
from tests.orchestrator.cli.test_startup import commands
from tests.support.command_line import run_command_line
from tests.support.processes import ultraedit

_STATED = re.compile(r"\[default: (.*)\]$")
_ELSEWHERE = re.compile(
    r"the preset's|the model's own preset|inferred from the edits|hold the whole model|all|4, or .*|auto in a Ray job.*|one GPU.*"
    r"|published with that preset, else raw"
)
"""Defaults that are found out by the run: the field of the configuration is ``None``."""


def shown(value: Any) -> str:
    value = ",".join(value) or "none" if isinstance(value, tuple) else value
    return f"{value:g}" if isinstance(value, float) else str(value)


def stated(option: click.Parameter) -> str | None:
    found = _STATED.search(getattr(option, "help", None) or "")
    return found.group(1) if found else None


def defaults_of(owner: Any) -> dict[str, Any]:
    if inspect.isfunction(owner):
        return {name: p.default for name, p in inspect.signature(owner).parameters.items() if p.default is not p.empty}
    return {f.name: f.default for f in fields(owner) if f.default is not MISSING}


@pytest.mark.parametrize("option", [o for o in edit.params if stated(o)], ids=lambda option: option.opts[0])
def test_a_default_in_the_help_of_edit_is_that_of_the_run(option: click.Option) -> None:
    text = stated(option) or ""
    default = getattr(RunConfig, str(option.name))
    if text.startswith("the preset's, else "):
        assert default is None
        method = getattr(MethodOptions, str(option.name))
        expected = shown(method) if not isinstance(method, bool) else option.opts[0][2:] if method else option.secondary_opts[0][2:]
        assert text == f"the preset's, else {expected}"
    elif isinstance(default, bool):
        assert text == (option.opts if default else option.secondary_opts)[0][2:]
    elif default is None:
        assert _ELSEWHERE.fullmatch(text)
    else:
        assert text == shown(default)


def test_every_option_of_edit_that_has_a_default_states_it() -> None:
    silent = {o.name for o in edit.params if not stated(o) and getattr(RunConfig, str(o.name), None) not in (None, False, ())}
    assert silent == set()


@pytest.mark.parametrize(
    ("command", "owner"),
    [(evaluate, measure_model), (plan_command, PlanOptions), (tune_command, TuneConfig), (build_command, BuildConfig)],
    ids=["evaluate", "plan", "tune", "data build"],
)
def test_a_default_of_another_command_is_that_of_what_it_calls(command: click.Command, owner: Any) -> None:
    theirs = defaults_of(owner)
    ours = {o.name: o.default for o in command.params if isinstance(o, click.Option) and o.show_default and o.name in theirs}
    assert ours == {name: theirs[name] for name in ours}
    assert len(ours) >= 2


def test_the_defaults_of_tune_that_are_written_out_are_those_of_the_search() -> None:
    by_name = {o.name: stated(o) for o in tune_command.params}
    assert by_name["strengths"] == ",".join(f"{s:g}" for s in TuneConfig.strengths)
    assert by_name["objective"] is not None
    assert Objective.parse(by_name["objective"]) == Objective.parse("")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        pytest.param(options.FORMATS, tuple(FORMATS), id="formats"),
        pytest.param(options.DTYPES, get_args(DTypeName), id="dtypes"),
        pytest.param(options.MOMENT_RULES, get_args(MomentRule), id="moment rules"),
        pytest.param(options.PRESERVE_FORMS, get_args(PreserveForm), id="preserve forms"),
        pytest.param(options.SUBJECT_TARGETS, get_args(SubjectTargets), id="subject targets"),
        pytest.param(options.JOINS, get_args(Join), id="joins"),
        pytest.param(options.FRAMINGS, shipped(), id="framings"),
        pytest.param(options.ANSWER_ENDS, get_args(AnswerEnd), id="ends of answers"),
        pytest.param(options.PREFIX_DTYPES, get_args(PrefixDType), id="precisions of the frozen layers"),
        pytest.param(options.EXPORT_FORMS, get_args(Form), id="forms of an export"),
        pytest.param(options.SAVES, get_args(Save), id="saves"),
        pytest.param(options.ON_COLLAPSE, get_args(OnCollapse), id="what to do on collapse"),
    ],
)
def test_the_choices_of_options_are_those_of_what_they_configure(ours: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    assert ours == theirs


def test_options_of_edit_are_shown_in_groups() -> None:
    help_text = run_command_line("edit", "--help").stdout
    titles = [line for line in help_text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    groups = ["Model and data", "Method", "Memory and speed", "Cluster", "Evaluation", "Safety and resuming", "Tracking", "Options"]
    assert titles == [f"{group}:" for group in groups]
    assert re.search(r"^Cluster:\n  --shards <N>", help_text, re.MULTILINE)


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("names", commands(), ids=lambda names: " ".join(names) or "ultraedit")
def test_help_fits_its_width_with_every_option_whole(names: tuple[str, ...], columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    help_text = run_command_line(*names, "--help").stdout
    command: click.Command = cli
    for name in names:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert max(map(len, help_text.splitlines())) <= columns
    assert "…" not in help_text
    for option in command.params:
        assert not isinstance(option, click.Option) or all(re.search(rf"(^| |/){opt}\b", help_text, re.MULTILINE) for opt in option.opts)


def test_help_in_a_pipe_is_plain_text() -> None:
    done = ultraedit("edit", "--help")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert done.stdout.isascii()
    assert [line for line in done.stdout.splitlines() if line != line.rstrip()] == []


@pytest.mark.parametrize("write", [lambda: run_command_line("--help").stdout], ids=["ultraedit"])
def test_commands_are_shown_in_groups(write: Callable[[], str]) -> None:
    assert [line for line in write().splitlines() if line.endswith(":")][-4:] == ["Edit a model:", "Look at results:", "Into service:", "Prepare:"]
