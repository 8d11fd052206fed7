"""Shell completion, in real shells."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import environment, ultraedit


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which this checkout's ``ultraedit`` is found."""
    script = tmp_path / "bin" / "ultraedit"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m orchestrator "$@"\n')
    script.chmod(0o755)
    return f"{script.parent}:{os.environ['PATH']}"


def completed(path: str, *words: str) -> list[str]:
    """What bash offers for the last word."""
    script = """
        eval "$(_ULTRAEDIT_COMPLETE=bash_source ultraedit)"
        complete -p ultraedit | grep -q -- "-F _ultraedit_completion" || exit 9
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _ultraedit_completion ultraedit
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    command = ["bash", "-c", script, "bash", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(PATH=path), timeout=180, check=True)
    assert done.stderr == ""
    return done.stdout.split()


pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def test_bash_completes_a_command(path: str) -> None:
    assert completed(path, "ultraedit", "ro") == ["rollback"]
    assert completed(path, "ultraedit", "data", "s") == ["sample", "split"]


def test_bash_completes_an_option(path: str) -> None:
    names = ("weight", "rank", "text", "framed", "neighbours", "alike", "outputs")
    options = [f"--preserve-{name}" for name in names]
    assert completed(path, "ultraedit", "edit", "--preserve-") == options


def test_bash_completes_the_value_of_an_option(path: str) -> None:
    assert completed(path, "ultraedit", "edit", "--on-collapse", "r") == ["rollback"]
    assert completed(path, "ultraedit", "edit", "--format", "mq") == ["mquake"]


def test_bash_is_left_to_complete_file_names() -> None:
    for line in ("ultraedit edit --edits some", "ultraedit show some"):
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_ULTRAEDIT_COMPLETE": "bash_complete"}
        assert ultraedit(**words).stdout == "file,some\n"  # upon which the script has bash look for files


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_it_can_read(shell: str, path: str) -> None:
    command = ["ultraedit"]
    variables = environment(PATH=path, _ULTRAEDIT_COMPLETE=f"{shell}_source")
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=180, check=True)
    assert "ultraedit" in done.stdout
    assert f"_ULTRAEDIT_COMPLETE={shell}_complete" in done.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.stdout, text=True, check=True)
