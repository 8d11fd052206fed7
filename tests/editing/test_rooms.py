"""Inside ``editing`` too imports run one way, and the method is the paper and nothing else."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import editing

ROOT = Path(editing.__file__).parent
ALLOWED = {
    "config": {"errors"},
    "sharding": set(),
    "low_rank": set(),
    "method": {"config", "errors", "sharding"},
    "model": {"blanks", "config", "errors", "files", "messages", "method", "ranges", "sharding", "subjects"},
}
"""What a folder or file of ``editing`` may import of the others."""


def rooms_imported(file: Path) -> set[str]:
    """Folders and files of ``editing`` that a module imports, wherever the import is."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("editing.")}
    return found


def graph() -> dict[str, set[str]]:
    """What each room imports; the package's own ``__init__`` gathers names of all of them and is no room."""
    rooms: dict[str, set[str]] = {}
    for file in ROOT.rglob("*.py"):
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if room != "__init__":
            rooms[room] = rooms.get(room, set()) | (rooms_imported(file) - {room})
    return rooms


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_knows_only_the_rooms_below_it(room: str) -> None:
    assert graph()[room] <= ALLOWED[room]


def test_no_room_imports_itself_through_others() -> None:
    order = list(TopologicalSorter(graph()).static_order())  # raises a CycleError that names the circle
    assert order.index("method") < order.index("model") < order.index("editor")
