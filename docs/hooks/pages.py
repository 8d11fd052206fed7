"""Pages that are made of files outside ``docs/``, and links that leave the site.

README.md, CHANGELOG.md, CONTRIBUTING.md and deploy/README.md are written for a reader of the repository and are pages here too. Links
are relative to the file that they stand in, so that they work in a checkout. On the site a link to another page leads there; a
link to any other file of the repository becomes its path, since where the repository lies on the web is not known. A link to a
file that does not exist is a warning, with which ``mkdocs build --strict`` fails.
"""

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "deploy/README.md": "deploy.md"}
"""Files of the repository with the names of their pages."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^\s*(```|~~~)")
_ELSEWHERE = re.compile(r"""<(?:script|img|iframe)[^>]+src=["']?(?:https?:)?//|<link[^>]+rel=["']?stylesheet[^>]+href=["']?(?:https?:)?//""")

log = logging.getLogger("mkdocs.hooks.pages")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made of other files."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=with_links(text, source, page)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of an ordinary page; those of the generated ones have been turned."""
    name = page.file.src_uri
    return markdown if name in PAGES.values() else with_links(markdown, f"docs/{name}", name)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Warn of what a reader's browser would load from elsewhere: the site works without a network."""
    if found := _ELSEWHERE.search(output):
        log.warning("%s loads something from elsewhere: %s", page.file.src_uri, output[found.start() : found.start() + 120])
    return output


def with_links(markdown: str, source: str, page: str) -> str:
    """A file's text with its relative links as the site wants them.

    Args:
        markdown: The text.
        source: The file's path in the repository, which its links are relative to.
        page: Name of its page.
    """
    fenced, lines = False, []
    for line in markdown.split("\n"):
        fenced ^= bool(_FENCE.match(line))
        lines.append(line if fenced else _LINK.sub(lambda link: _turned(link, source, page), line))
    return "\n".join(lines)


def _turned(link: re.Match[str], source: str, page: str) -> str:
    bang, text, target, anchor = link[1], link[2], link[3], link[4] or ""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (ROOT / path).exists():
        log.warning("%s: the link to %r leads to no file", source, target)
    if path in PAGES or (path.startswith("docs/") and not path.startswith("docs/hooks/")):
        place = PAGES.get(path) or path.removeprefix("docs/")
        return f"{bang}[{text}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})"
    return text if text.strip("`") == path.rstrip("/") or text.startswith("`") else f"{text} (`{path}`)"


def on_config(config: MkDocsConfig) -> Any:
    """Let mkdocs watch the files that pages are made of, in ``mkdocs serve``."""
    config.watch.extend(str(ROOT / source) for source in PAGES)
    return config
