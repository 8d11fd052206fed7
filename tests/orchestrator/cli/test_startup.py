"""What does not need torch does not wait for it."""

import json
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

import editing
from orchestrator.cli.main import cli
from tests.support.processes import ROOT, RUN, environment

HEAVY = {"torch", "transformers", "mlflow", "ray", "matplotlib", "deepspeed", "scipy", "pandas"}
FOR_HELP = HEAVY | {"pyarrow", "numpy", "yaml"}

_CODE = """
import json, sys
from orchestrator.__main__ import main
try:
    main()
except SystemExit as end:
    print("\\n" + json.dumps([end.code, sorted(sys.modules)]))
"""


def commands(group: click.Group = cli, *names: str) -> Iterator[tuple[str, ...]]:
    """The names of every command there is, groups too."""
    yield names
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield (*names, name)


def imported_by(*arguments: object, **variables: str) -> set[str]:
    """The packages that one call has imported when it ends well."""
    command = [sys.executable, "-c", _CODE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**variables), timeout=180, check=True)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("names", commands(), ids=lambda names: " ".join(names) or "ultraedit")
def test_no_help_imports_what_takes_long(names: tuple[str, ...]) -> None:
    assert imported_by(*names, "--help") & FOR_HELP == set()


@pytest.mark.parametrize("arguments", [["show", RUN], ["history", RUN], ["history", RUN, "--edits"], ["diff", RUN, 0, 1]], ids=lambda a: a[0])
def test_what_reads_a_finished_run_imports_neither_torch_nor_trackers(arguments: list[object]) -> None:
    imported = imported_by(*arguments)
    assert imported & HEAVY == set()
    assert "pyarrow" in imported


def test_inspecting_edits_imports_no_torch() -> None:
    assert imported_by("data", "inspect", ROOT / "tests" / "data" / "run-0.1.0" / "edits.jsonl") & HEAVY == set()


@pytest.mark.parametrize("words", ["ultraedit ed", "ultraedit edit --pre", "ultraedit data ins"])
def test_completing_a_word_imports_what_help_does(words: str) -> None:
    variables = {"_ULTRAEDIT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    assert imported_by(**variables) & FOR_HELP == set()


def test_errors_are_imported_without_torch() -> None:
    code = "import sys; from editing import InputError, EditRequest; print(sorted({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=180, check=True)
    assert done.stdout.strip() == "[]"


def test_every_exported_name_is_found_and_listed_and_no_other() -> None:
    assert set(editing.__all__) <= set(dir(editing))
    assert all(getattr(editing, name).__name__ == name for name in editing.__all__)
    with pytest.raises(AttributeError, match="module 'editing' has no attribute 'Edit'"):
        editing.Edit  # noqa: B018
