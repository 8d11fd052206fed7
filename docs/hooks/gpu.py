"""What ``make gpu-check`` found: ``<!-- gpu-check -->`` becomes the table of ``docs/gpu-check.json``, if there is one."""

import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

FOUND = Path(__file__).parents[1] / "gpu-check.json"
MARKER = "<!-- gpu-check -->"
_COLUMNS = ("check", "name", "expected", "found", "result")


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the table in the marker's place."""
    return markdown.replace(MARKER, shown(FOUND)) if MARKER in markdown else markdown


def shown(file: Path) -> str:
    """What a file of ``make gpu-check`` says, as Markdown; nothing without it."""
    if not file.is_file():
        return ""
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    where = f"{report['device']}, torch {report['torch']}, CUDA {report['cuda']}, version {report['project']}, {report['date']}"
    lines = [f"{where}; {report['seconds']:.0f} s{', small shapes' if report['small'] else ''}:", ""]
    lines += ["| check | what | expected | found | result | s | peak, GiB |", "|---|---|---|---|---|---:|---:|"]
    for row in report["rows"]:
        texts = (str(row[column]).replace("|", "\\|") for column in _COLUMNS)
        lines.append(f"| {' | '.join(texts)} | {row['seconds']:.1f} | {row['peak_bytes'] / 2**30:.2f} |")
    return "\n".join(lines)
