"""Docstrings of this project as the site shows them: ``:class:`Name``` is the name in code."""

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":\w+:`~?([^`]+)`")


class PlainRoles(Extension):
    """Take away the roles, which Markdown would print."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Turn the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
