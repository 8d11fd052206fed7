"""What pyproject.toml cannot say: README.md as a package index can show it.

A package index knows no repository, so links to files would lead nowhere. Each becomes its text and the file's path.
"""

import re
from pathlib import Path

from setuptools import setup

LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)\s]+)\)")
NOTE = "\n\nFiles and pages are named by their path in the source distribution of this version.\n"


def without_links(readme: str) -> str:
    """README.md with each relative link replaced by its text and the path; external links and anchors stay."""
    return LINK.sub(_as_text, readme) + NOTE


def _as_text(link: re.Match[str]) -> str:
    text, path = link[1], link[2].split("#")[0]
    return text if text.strip("`") == path else f"{text} (`{path}`)"


if __name__ == "__main__":
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(long_description=without_links(readme), long_description_content_type="text/markdown")
