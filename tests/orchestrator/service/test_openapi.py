"""Whatever fits the OpenAPI document, and what does not, is answered without an error of the service's own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.live_service import LiveService, fact, write_model


@pytest.mark.thorough
def test_no_request_that_the_document_allows_or_forbids_is_a_500(tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    service = LiveService(tmp_path, write_model(tmp_path / "model"), rate=1e6, burst=10**6)
    try:
        with service.client() as client:
            client.add_all([fact(i) for i in range(7)])
        service.settled()
        command = [Path(sys.executable).parent / "schemathesis", "run", f"{service.address}/openapi.json", "--checks", "not_a_server_error"]
        command += ["-H", f"Authorization: Bearer {service.token}", "--max-examples", "15", "--continue-on-failure", "--request-timeout", "40"]
        done = subprocess.run([*map(str, command), "--no-color"], capture_output=True, text=True, timeout=800, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stdout[-5000:]
        assert " passed" in done.stdout
    finally:
        service.stop()
