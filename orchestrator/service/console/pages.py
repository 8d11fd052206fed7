"""How a page is made: the templates, who looks at it, and what its forms must hold."""

import hmac
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from orchestrator.service import tokens
from orchestrator.service.api.context import Context, context_of, too_often
from orchestrator.service.api.problems import Problem
from orchestrator.service.tokens import Caller, Role

COOKIE = "ultraedit"
FOLDER = Path(__file__).parent

_MAX_FORM_FIELDS = 20


def _figure(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


_ENVIRONMENT = Environment(loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
_ENVIRONMENT.filters["figure"] = _figure


class LoginNeeded(Exception):
    """Nobody is logged in."""


@dataclass(frozen=True)
class Visit:
    """One look at the console.

    Attributes:
        request: The request.
        context: What the front end holds.
        caller: Who looks.
        form_key: What a form must hold, so that no other site's form is taken for one of these pages.
    """

    request: Request
    context: Context
    caller: Caller
    form_key: str

    def page(self, template: str, title: str, here: str = "", code: int = 200, **values: Any) -> HTMLResponse:
        """A page for whoever looks."""
        may = {f"may_{verb}": self.caller.may(role) for verb, role in _VERBS.items()}
        common = {
            "name": self.context.config.served_name,
            "caller": self.caller,
            "form_key": self.form_key,
            "chat": self.context.speaking is not None,
        }
        return page(template, code, **{"message": "", "wrong": False, **common, **may, "title": title, "here": here, **values})

    def needs(self, role: Role) -> None:
        """Refuse who may not do what a role may.

        Raises:
            Problem: It may not.
        """
        if not self.caller.may(role):
            raise Problem(403, f"a token of the role {role} is needed; this one is of a {self.caller.role}")

    async def form(self) -> dict[str, str]:
        """The fields of a form that was sent from a page of this session.

        Raises:
            Problem: It was not.
        """
        fields = await form_of(self.request)
        if not hmac.compare_digest(fields.get("form_key", "").encode(), self.form_key.encode()):
            raise Problem(403, "form: was not sent from a page of this session; load the page again")
        return fields


_VERBS: dict[str, Role] = {"edit": "editor", "approve": "approver"}


def visit_of(request: Request) -> Visit:
    """Who looks, by the session's cookie.

    Raises:
        LoginNeeded: Nobody is logged in.
        Problem: They look too often.
    """
    context = context_of(request)
    secret = request.cookies.get(COOKIE, "")
    with context.database.reading() as connection:
        found = tokens.of_session(connection, secret) if secret else None
    if found is None:
        raise LoginNeeded
    if wait := context.callers.take(found[0].token):
        raise too_often(wait)
    return Visit(request, context, *found)


Looks = Annotated[Visit, Depends(visit_of)]


def page(template: str, code: int = 200, **values: Any) -> HTMLResponse:
    """A page, which nobody keeps."""
    return HTMLResponse(_ENVIRONMENT.get_template(template).render(values), code, {"Cache-Control": "no-store"})


def go(place: str) -> Response:
    """Look at another page, after a form."""
    return RedirectResponse(place, 303)


async def form_of(request: Request) -> dict[str, str]:
    """Fields of a form, each once.

    Raises:
        Problem: It is no form.
    """
    try:
        fields: Mapping[str, list[str]] = parse_qs(
            (await request.body()).decode("utf-8"), keep_blank_values=True, max_num_fields=_MAX_FORM_FIELDS, errors="strict"
        )
    except ValueError:
        raise Problem(400, "form: could not be read; expected fields in UTF-8") from None
    return {name: values[-1] for name, values in fields.items()}
