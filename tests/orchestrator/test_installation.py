"""The project's package names are generic: what another has of the same name is told in one line."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from editing.version import __version__

ROOT = Path(__file__).parents[2]


def ask(*path: Path) -> subprocess.CompletedProcess[str]:
    """The check in a process of its own, with these folders first on the path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))}
    return subprocess.run([sys.executable, "-P", "-m", "orchestrator.installation"], capture_output=True, text=True, env=environment, check=False)


def test_the_packages_of_this_checkout_are_its_own() -> None:
    answer = ask()
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == f"ultraedit-orchestrator {__version__}: editing, workers, orchestrator in {ROOT} are its own\n"


def test_a_package_that_hides_one_of_them_is_named_with_its_place_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").touch()
    answer = ask(tmp_path)
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert line.startswith(f"error: package 'workers' is imported from {tmp_path / 'workers'}, expected {ROOT / 'workers'}; install ")


def test_the_version_is_that_of_the_project() -> None:
    assert __version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
