"""What no honest client sends: each gets a problem in one form, and nobody gets an answer without a token."""

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from orchestrator.service.client import Client, Edit, Refused
from tests.support.live_service import LiveService, fact

pytestmark = pytest.mark.long


def ask(service: LiveService, method: str, path: str, body: bytes | str | None = None, **headers: str) -> tuple[int, dict[str, Any], Any]:
    """One request as it is, with the admin's token unless another is given."""
    parts = urlsplit(service.address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    sent = {"Authorization": f"Bearer {service.token}", **({"Content-Type": "application/json"} if body is not None else {})}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {name: value for name, value in sent.items() if value})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    found = json.loads(content) if "json" in answer.headers.get("Content-Type", "") else {}
    return answer.status, found, answer.headers


EDIT = json.dumps({"prompt": "a", "target": "b"})

WRONG = [
    ("GET", "/v1/edits", None, {"Authorization": ""}, 401),
    ("GET", "/v1/edits", None, {"Authorization": "Bearer ue_00000000_x"}, 401),
    ("GET", "/metrics", None, {"Authorization": ""}, 401),
    ("POST", "/v1/chat/completions", EDIT, {"Authorization": ""}, 401),
    ("GET", "/v1/edits", None, {"Host": "evil.example"}, 421),
    ("POST", "/v1/edits", "{", {}, 400),
    ("POST", "/v1/edits", b"\xff\xfe{}", {}, 400),
    ("POST", "/v1/edits", "[" * 50_000, {}, 400),
    ("POST", "/v1/edits", '{"prompt": 1' + "0" * 5000 + "}", {}, 400),
    ("POST", "/v1/edits", EDIT, {"Content-Type": "text/plain"}, 415),
    ("POST", "/v1/edits", EDIT, {"Content-Encoding": "gzip"}, 415),
    ("POST", "/v1/edits", "x" * 300_000, {}, 413),
    ("POST", "/v1/edits", EDIT, {"Idempotency-Key": "a b"}, 422),
    ("POST", "/v1/edits", "[]", {}, 422),
    ("POST", "/v1/edits", json.dumps({"prompt": "a", "target": "b", "subjct": "c"}), {}, 422),
    ("POST", "/v1/edits", json.dumps({"prompt": "a", "target": "b", "subject": "not there"}), {}, 422),
    ("POST", "/v1/edits", json.dumps({"prompt": "a\x00b", "target": "b"}), {}, 422),
    ("POST", "/v1/edits", '{"prompt": "\\ud800", "target": "b"}', {}, 422),
    ("POST", "/v1/edits", json.dumps({"prompt": "  ", "target": "b"}), {}, 422),
    ("POST", "/v1/edits", json.dumps({"prompt": "a", "messages": [{"role": "user", "content": "a"}], "target": "b"}), {}, 422),
    ("POST", "/v1/edits", json.dumps({"messages": [], "target": "b"}), {}, 422),
    ("POST", "/v1/edits", json.dumps({"messages": [{"role": "assistant", "content": "a"}], "target": "b"}), {}, 422),
    ("POST", "/v1/edits", json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "target": "b"}), {}, 422),
    ("POST", "/v1/edits", json.dumps({"prompt": "a", "target": "b", "expires": "2026-01-01T00:00:00"}), {}, 422),
    ("GET", "/v1/edits/..%2f..%2fetc%2fpasswd", None, {}, 404),
    ("GET", "/v1/edits/e-0000000000000000", None, {}, 404),
    ("GET", "/v1/edits?cursor=1;drop", None, {}, 422),
    ("GET", "/v1/edits?state=nothing", None, {}, 422),
    ("GET", "/v1/edits?q=%00", None, {}, 422),
    ("GET", "/v1/versions/99999999999999999999", None, {}, 422),
    ("GET", "/v1/versions/999999", None, {}, 404),
    ("POST", "/v1/versions/0/publish", json.dumps({"to": "file:///etc"}), {}, 422),
    ("POST", "/v1/versions/0/promote", None, {}, 409),
    ("POST", "/v1/completions", json.dumps({"model": "tiny/../../x", "prompt": "a"}), {}, 404),
    ("POST", "/v1/completions", json.dumps({"model": "tiny@999", "prompt": "a"}), {}, 404),
    ("POST", "/v1/completions", json.dumps({"model": "tiny", "prompt": "a " * 300, "max_tokens": 1000}), {}, 422),
    ("POST", "/v1/webhooks", json.dumps({"url": "file:///etc/passwd"}), {}, 422),
    ("PATCH", "/v1/edits", EDIT, {}, 405),
    ("GET", "/nothing", None, {}, 404),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"), WRONG, ids=[f"{number}-{row[1][:30]}-{row[4]}" for number, row in enumerate(WRONG)]
)
def test_a_wrong_request_gets_a_problem(service: LiveService, method: str, path: str, body: Any, headers: dict[str, str], status: int) -> None:
    found, problem, answered = ask(service, method, path, body, **headers)
    assert (found, problem["status"]) == (status, status)
    assert answered["Content-Type"] == "application/problem+json"
    assert {"type", "title", "detail"} <= problem.keys()
    assert "\n" not in problem["detail"]
    assert answered["X-Content-Type-Options"] == "nosniff"


def test_a_body_without_a_length_is_counted_while_it_comes(service: LiveService) -> None:
    parts = urlsplit(service.address)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30) as raw:
        head = f"POST /v1/edits HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {service.token}\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(5):
            raw.sendall(b"%x\r\n%s\r\n" % (60_000, b" " * 60_000))
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_two_host_headers_are_refused(service: LiveService) -> None:
    parts = urlsplit(service.address)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30) as raw:
        raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil\r\n\r\n")
        assert raw.recv(100).split()[1] in (b"400", b"421")


def test_each_role_may_do_what_it_says_and_no_more(service: LiveService, client: Client, facts: Iterator[Edit]) -> None:
    made = {role: client.call("POST", "/v1/tokens", {"name": f"a-{role}", "role": role}) for role in ("reader", "editor", "approver")}
    with service.client(made["reader"]["token"]) as reader, service.client(made["editor"]["token"]) as editor:
        assert reader.status()["model"] == "tiny"
        with pytest.raises(Refused, match="a token of the role editor is needed; this one is of a reader"):
            reader.add(next(facts))
        edit = editor.add(next(facts))
        with pytest.raises(Refused, match="role approver"):
            editor.reject(edit.id)
        with pytest.raises(Refused, match="role admin"):
            editor.call("GET", "/v1/tokens")
        assert (editor.edit(edit.id).history or [])[0]["actor"] == "a-editor"
    listed = list(client.pages("/v1/tokens", {}))
    assert not any("sha256" in token or "token" in token for token in listed)
    number = next(token["id"] for token in listed if token["name"] == "a-reader")
    client.call("DELETE", f"/v1/tokens/{number}")
    assert ask(service, "GET", "/v1/status", Authorization=f"Bearer {made['reader']['token']}")[0] == 401
    assert service.token not in service.log()


def test_a_tenants_token_sees_its_own_edits_alone(service: LiveService, client: Client, facts: Iterator[Edit]) -> None:
    token = client.call("POST", "/v1/tokens", {"name": "of-a", "role": "editor", "tenant": "a"})["token"]
    others = client.add(next(facts))
    with service.client(token) as bound:
        own = bound.add(Edit(next(facts).prompt, "x", tenant="b"))
        assert own.tenant == "a"
        assert [edit.id for edit in bound.edits()] == [own.id]
        with pytest.raises(Refused, match="there is none with the id"):
            bound.remove(others.id)
        bound.remove(own.id)


def test_who_asks_too_often_is_told_when_to_come_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    from orchestrator.service.api.limits import RateLimit

    limit = RateLimit(rate=2, burst=3)
    assert [limit.take("a") for _ in range(3)] == [0, 0, 0]
    assert 0 < limit.take("a") <= 0.5
    assert limit.take("b") == 0


def test_injected_text_is_text(service: LiveService, client: Client) -> None:
    prompt = "<script>alert(1)</script>'; drop table edits; -- {{ 7 * 7 }} \u202e"
    edit = client.add(Edit(prompt, "</td>"))
    assert client.edit(edit.id).prompt == prompt
    assert [found.id for found in client.edits(q="'; drop table")] == [edit.id]
    client.remove(edit.id)


def test_nobody_sees_the_console_without_logging_in_or_posts_from_elsewhere(service: LiveService) -> None:
    assert ask(service, "GET", "/console/edits", Authorization="")[0] == 303
    assert ask(service, "POST", "/console/login", "token=wrong", Content_Type="application/x-www-form-urlencoded")[0] == 401
    answer = ask(service, "POST", "/console/login", f"token={service.token}", Content_Type="application/x-www-form-urlencoded")
    cookie = answer[2]["Set-Cookie"]
    assert answer[0] == 303
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    session = cookie.partition(";")[0]
    for page in ("edits", "new", "versions", "versions/0", "probes", "chat", "health"):
        status, _, headers = ask(service, "GET", f"/console/{page}", Cookie=session)
        assert status == 200, page
        assert "default-src 'self'" in headers["Content-Security-Policy"]
    form = f"prompt={fact(0).prompt}&target=x"
    assert ask(service, "POST", "/console/new", form, Cookie=session, Content_Type="application/x-www-form-urlencoded")[0] == 403
