"""Versions in a running engine, webhooks, and a disk that is full for a while."""

import errno
import hashlib
import hmac
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from orchestrator.cli.libraries import ready_libraries
from orchestrator.service import edits
from orchestrator.service.client import Client, Refused
from orchestrator.service.config import ServeConfig
from orchestrator.service.database import Database
from orchestrator.service.hooks import SIGNATURE
from orchestrator.service.writer import Writer
from tests.support.failing_disk import fail_syncs
from tests.support.live_checks import check
from tests.support.live_service import SETTINGS, LiveService, fact
from tests.support.loopback_engines import LoopbackVllm, serving
from tests.support.quiet_server import QuietServer
from tests.support.tiny_runs import MODEL

pytestmark = pytest.mark.long


class Hooks(QuietServer):
    """Takes what webhooks tell; refuses the first delivery of each."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HookHandler)
        self.told: list[tuple[str, str]] = []
        self.refused: set[str] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _HookHandler(BaseHTTPRequestHandler):
    server: Hooks

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        again = body in self.server.refused
        self.server.refused.add(body)
        self.send_response(200 if again else 503)
        self.end_headers()
        if again:
            self.server.told.append((self.headers[SIGNATURE], body))

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.thorough
def test_webhooks_are_signed_and_told_again_until_they_are_heard(service: LiveService, client: Client) -> None:
    hooks = Hooks()
    made = client.call("POST", "/v1/webhooks", {"url": f"http://127.0.0.1:{hooks.server_port}/told?x=1", "kinds": ["version.live"]})
    edit = client.wait(client.add(fact(40)).id)
    deadline = time.monotonic() + 30
    while not hooks.told:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    signature, body = hooks.told[0]
    seconds, _, digest = signature.removeprefix("t=").partition(",v1=")
    assert hmac.compare_digest(digest, hmac.new(made["secret"].encode(), f"{seconds}.{body}".encode(), hashlib.sha256).hexdigest())
    told = json.loads(body)
    assert (told["kind"], told["version"], told["edits"]) == ("version.live", edit.version, [edit.id])
    assert made["secret"] not in json.dumps(list(client.pages("/v1/webhooks", {})))
    assert made["secret"] not in service.log()
    client.call("DELETE", f"/v1/webhooks/{made['id']}")
    hooks.shutdown()


def test_a_full_disk_stops_the_writer_until_there_is_room_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready_libraries()
    config = ServeConfig.build({**SETTINGS, "model": str(MODEL), "state": str(tmp_path / "state"), "writer_threads": 1})
    (tmp_path / "serve.yaml").write_text(json.dumps({**SETTINGS, "model": str(MODEL), "state": str(tmp_path / "state")}))
    stop = threading.Event()
    writer = Writer(config, stop.is_set)
    thread = threading.Thread(target=writer.run)
    database = Database(config.database_url)
    thread.start()
    try:
        _until(lambda: writer._lease.epoch and hasattr(writer, "_head") and writer._head.row.get("number") == 0, 60)
        monkeypatch.setattr(os, "fsync", os.fsync)  # put back at the end, whatever happens
        plain = os.fsync
        fail_syncs(1, errno.ENOSPC)
        drafts = [edits.Draft(request=fact(i).as_dict(), prompt=fact(i).prompt, target=fact(i).target) for i in range(3)]
        ids, _ = edits.add_once(database, drafts, actor="eve", token="t", key=None)
        _until(lambda: "No space left" in writer._lease.doing, 60)
        assert _states(database) == {"validated": 3}
        os.fsync = plain
        _until(lambda: _states(database) == {"live": 3}, 60)
    finally:
        stop.set()
        thread.join(60)
        database.close()
    check(tmp_path / "serve.yaml", tmp_path / "replay", set(ids))


@pytest.mark.thorough
def test_a_version_is_live_once_an_engine_serves_it_and_a_canary_is_promoted_or_dropped(tmp_path: Path) -> None:
    engine = LoopbackVllm(MODEL)
    with serving(engine):
        service = LiveService(tmp_path, publish=f"vllm://127.0.0.1:{engine.port}", auto_publish=False, turn_edits=10)
        try:
            with service.client() as client:
                first = client.add_all([fact(i) for i in range(10)])
                service.settled()
                assert {client.edit(edit.id).state for edit in first} == {"verified"}
                assert client.publish(1)["name"] == "edited"
                assert {client.edit(edit.id).state for edit in first} == {"live"}
                client.add(fact(11))
                service.settled()
                assert client.publish(2, canary=True)["canary"]
                assert set(engine.adapters) == {"edited", "edited-canary"}
                assert client.status()["live_version"] == 1
                client.drop(2)
                assert set(engine.adapters) == {"edited"}
                client.publish(2, canary=True)
                client.promote(2)
                assert set(engine.adapters) == {"edited"}
                assert client.status()["live_version"] == 2
                engine.faults.add("rank")
                client.add(fact(12))
                service.settled()
                with pytest.raises(Refused) as refused:
                    client.publish(3)
                assert refused.value.status == 409
                assert client.status()["live_version"] == 2
        finally:
            service.stop()


def _until(true: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _states(database: Database) -> dict[str, int]:
    with database.reading() as connection:
        return edits.counts(connection)
