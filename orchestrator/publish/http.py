"""Calls of an engine's web API: JSON in, JSON or a line of text out, every failure one line. Follows no redirect, uses no proxy."""

import http.client
import json
from dataclasses import dataclass
from typing import Any

from editing.errors import UltraEditError, on_one_line

_SHOWN = 300
"""Characters of an engine's own words that are shown."""


class EngineError(UltraEditError):
    """An engine does not answer, or refuses.

    Args:
        message: What is shown.
        status: The HTTP status of its answer; 0 if there was none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Api:
    """Where an engine's API is.

    Attributes:
        called: What to call it in messages, ``vllm://HOST:PORT``.
        host: Its host.
        port: Its port.
        token: Sent as a bearer token, if there is one.
        timeout: Seconds that an answer may take.
    """

    called: str
    host: str
    port: int
    token: str | None
    timeout: float

    def get(self, path: str) -> Any:
        """Answer to a GET. Raises as :meth:`post` does."""
        return self._call("GET", path, None)

    def post(self, path: str, body: Any = None) -> Any:
        """Answer to a POST, JSON where it is JSON, else text.

        Raises:
            EngineError: Nothing listens there, it took too long, or the engine refused.
        """
        return self._call("POST", path, body)

    def _call(self, method: str, path: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            status, text = answer.status, answer.read().decode("utf-8", "replace")
        except TimeoutError:
            raise EngineError(
                f"{self.called}: {path}: no answer within {self.timeout:g} s; see the engine's log, or give a larger --timeout"
            ) from None
        except ConnectionRefusedError:
            raise EngineError(f"{self.called}: nothing listens there; start the engine, or check host and port") from None
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"{self.called}: {path}: the connection broke ({type(error).__name__}: {error}); see the engine's log") from None
        finally:
            connection.close()
        if status in (401, 403):
            raise EngineError(
                f"{self.called}: {path}: the token was refused (status {status}); put the right one into the variable of --token-env", status
            )
        if status >= 300:
            raise EngineError(f"{self.called}: {path}: refused (status {status}): {said(text)}", status)
        try:
            return json.loads(text)
        except ValueError:
            return text


def said(text: str) -> str:
    """An engine's words on one line: its message, where it sends one in a form that is known."""
    try:
        content: Any = json.loads(text)
    except ValueError:
        content = text
    for key in ("error", "message", "error_message", "detail"):
        if isinstance(content, dict) and content.get(key):
            content = content[key]
    line = on_one_line(" ".join(str(content).split()))
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"
