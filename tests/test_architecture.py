"""Dependencies run one way, and the method needs neither a cluster nor a tracker."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FORBIDDEN = {
    "editing": {"ray", "deepspeed", "mlflow", "workers", "orchestrator", "deploy"},
    "workers": {"mlflow", "orchestrator", "deploy"},
    "orchestrator": {"deploy"},
}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found |= {name.split(".")[0] for name in names}
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_dependencies_run_one_way(package: str) -> None:
    wrong = {str(f.relative_to(ROOT)): bad for f in (ROOT / package).rglob("*.py") if (bad := imports(f) & FORBIDDEN[package])}
    assert not wrong


def test_one_file_alone_knows_deepspeed() -> None:
    knowing = [f.name for package in FORBIDDEN for f in (ROOT / package).rglob("*.py") if "deepspeed" in imports(f)]
    assert knowing == ["autotp.py"]


def test_importing_editing_loads_no_cluster_and_no_tracker() -> None:
    code = "import sys, editing; print([m for m in ('ray', 'deepspeed', 'mlflow', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip() == "[]"
