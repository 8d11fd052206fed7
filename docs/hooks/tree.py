"""Lists of files on the page of the architecture: ``<!-- files PACKAGE -->`` becomes its files, each with the first paragraph of its own head."""

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

_MARKER = re.compile(r"<!-- files (\w+) -->")
_ROLE = re.compile(r":\w+:`~?([^`]+)`")


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the lists in the markers' places."""
    return _MARKER.sub(lambda marker: files_of(marker[1]), markdown)


def files_of(package: str) -> str:
    """A package's files by folder, as Markdown."""
    parts = []
    for folder in sorted({file.parent for file in (ROOT / package).rglob("*.py")}):
        files = [file for file in sorted(folder.glob("*.py")) if not file.name.startswith("__")]
        heads = [f"* `{file.name}`: {head}" for file in files if (head := head_of(file))]
        own = head_of(folder / "__init__.py") if (folder / "__init__.py").is_file() and folder != ROOT / package else ""
        parts.append("\n\n".join(part for part in (f"**`{folder.relative_to(ROOT)}/`** {own}", "\n".join(heads)) if part))
    return "\n\n".join(parts)


def head_of(file: Path) -> str:
    """The first paragraph of a file's docstring, on one line; nothing if it has none."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = " ".join(docstring.split("\n\n")[0].split())
    return _ROLE.sub(r"`\1`", first).replace("``", "`").rstrip(".")
