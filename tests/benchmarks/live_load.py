"""A service under load: edits posted in batches at a fixed rate, and reads beside them, while turns run.

python -m tests.benchmarks.live_load [SECONDS] [EDITS_A_SECOND]     on the tiny model, SQLite, one machine
"""

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from orchestrator.service.client import Client, Edit
from tests.support.live_service import LiveService, fact

_BATCH = 500
_TIMES = 12
"""How often memory is looked at."""


def main(seconds: float, rate: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        service = LiveService(Path(folder), rate=1e6, burst=10**6, turn_edits=100, turn_seconds=1)
        try:
            service.wait(lambda client: client.status()["version"] is not None)
            _measure(service, seconds, rate)
        finally:
            service.stop()


def _measure(service: LiveService, seconds: float, rate: float) -> None:
    end, failed = time.monotonic() + seconds, list[str]()
    posts, reads, pages = list[float](), list[float](), list[float]()
    memory = list[tuple[float, float]]()

    def post(client: Client, number: int) -> None:
        client.add_all([Edit(f"{fact(i).prompt} {number} {i}", fact(i).target) for i in range(_BATCH)])

    threads = [
        threading.Thread(target=_repeat, args=(service, post, _BATCH / rate, end, posts, failed)),
        threading.Thread(target=_repeat, args=(service, lambda client, _: client.status(), 0.05, end, reads, failed)),
        threading.Thread(target=_repeat, args=(service, lambda client, _: client.call("GET", "/v1/edits?limit=20"), 0.05, end, pages, failed)),
        threading.Thread(target=_watch_memory, args=(service, end, seconds / _TIMES, memory)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with service.client() as client:
        status = client.status()
    print(f"{len(posts) * _BATCH} edits posted in {seconds:g} s ({len(posts) * _BATCH / seconds:.0f} a second), {len(failed)} failed {failed[:3]}")
    for name, found in ((f"posts of {_BATCH} edits", posts), ("GET /v1/status", reads), ("GET /v1/edits", pages)):
        hundredths = statistics.quantiles(found, n=100)
        print(
            f"{name}: median {1e3 * hundredths[49]:.0f} ms, p99 {1e3 * hundredths[98]:.0f} ms, largest {1e3 * max(found):.0f} ms, {len(found)} calls"
        )
    for name, sizes in zip(("API", "writer"), zip(*memory, strict=True), strict=True):
        print(f"memory of the {name} in MB, every {seconds / _TIMES:g} s: {' '.join(f'{size:.0f}' for size in sizes)}")
    print(f"{status['edits']}, version {status['version']}")


def _watch_memory(service: LiveService, end: float, every: float, found: list[tuple[float, float]]) -> None:
    for left in range(_TIMES - 1, -1, -1):
        time.sleep(max(0.0, end - left * every - time.monotonic()))
        processes = psutil.Process(service.process.pid), service.writer()
        found.append(tuple(p.memory_info().rss / 1e6 if p is not None else 0.0 for p in processes))  # type: ignore[arg-type]


def _repeat(service: LiveService, do: Callable[[Client, int], object], every: float, end: float, took: list[float], failed: list[str]) -> None:
    due, number = time.monotonic(), 0
    with service.client() as client:
        while time.monotonic() < end:  # who cannot keep up makes fewer calls, and no call after the end
            time.sleep(max(0.0, due - time.monotonic()))
            began = time.monotonic()
            try:
                do(client, number)
            except Exception as error:  # whatever it is, it counts
                failed.append(f"{type(error).__name__}: {error}")
            took.append(time.monotonic() - began)
            due, number = due + every, number + 1


if __name__ == "__main__":
    main(*map(float, sys.argv[1:3] or ("60", "1000")))
