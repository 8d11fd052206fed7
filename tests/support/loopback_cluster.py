"""A Ray cluster of two nodes on this machine's loopback addresses, started as a person starts one: with ``ray start``."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.paths import ROOT
from tests.support.ports import free_ports

HEAD, WORKER = "127.0.0.2", "127.0.0.3"  # 127.0.0.1 would be replaced by this machine's outer address
_START_SECONDS = 180


@dataclass(frozen=True)
class LoopbackCluster:
    """A running cluster.

    Attributes:
        dashboard: Address that jobs are sent to.
        gcs: Address of the cluster itself, as ``HOST:PORT``.
        client: Address of its server for clients, as ``HOST:PORT``.
        token: Who gives it, is let in.
        environment: What a client's process needs, the token apart.
        processes: The two ``ray start``, whose process groups hold all of the cluster.
    """

    dashboard: str
    gcs: str
    client: str
    token: str
    environment: dict[str, str]
    processes: tuple[subprocess.Popen[bytes], ...]

    @property
    def let_in(self) -> dict[str, str]:
        """The environment of a client that has the token."""
        return {**self.environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def packages(self, node: str) -> Path:
        """A folder whose packages a node finds before all others."""
        return Path(self.environment["RAY_TMPDIR"]) / f"packages-{node}"

    def ask(self, path: str) -> Any:
        """What the dashboard answers."""
        request = urllib.request.Request(self.dashboard + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def list_states(self, kind: str) -> list[dict[str, Any]]:
        """Ray's own list of its nodes or actors."""
        return list(self.ask(f"/api/v0/{kind}?detail=1")["data"]["result"]["result"])

    def client_logs(self) -> str:
        """What the servers of this cluster's clients have written."""
        logs = sorted(Path(self.environment["RAY_TMPDIR"]).glob("127*/session_latest/logs/ray_client_server*"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in logs)

    def processes_of(self, command: str = "") -> list[psutil.Process]:
        """Processes of this cluster and its clients whose command line holds some words."""
        mark, found = self.environment["RAY_TMPDIR"], []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if command in line and (mark in line or process.environ().get("RAY_TMPDIR") == mark):
                    found.append(process)
        return found


@contextlib.contextmanager
def loopback_cluster(token: str, *, cpus_per_node: int = 1) -> Iterator[LoopbackCluster]:
    """Two nodes that let in whoever knows the token. Ports are free ones: clusters side by side do not meet."""
    folder = Path(tempfile.mkdtemp(prefix="ultraedit-ray-"))  # short: the names of Unix sockets are
    gcs, dashboard, client, *others = free_ports(3 + 2 * 6)
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),  # nobody's own token is found there
        "RAY_TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
        "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "180",  # a client's own server imports for half a minute on a busy machine
        "GRPC_ENABLE_FORK_SUPPORT": "0",  # a client's own server may die of it while it is forked (ray-project/ray#63202)
        "HF_HUB_OFFLINE": "1",
    }
    locked = {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    head = ["--head", f"--port={gcs}", f"--ray-client-server-port={client}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for address, role, ports in ((HEAD, head, others[:6]), (WORKER, [f"--address={HEAD}:{gcs}"], others[6:])):
            # a folder each, as two machines have: what one node deletes there, the other may be using
            place = [f"--node-ip-address={address}", f"--temp-dir={folder / address}"]
            (packages := folder / f"packages-{address}").mkdir()
            own = {**locked, "PYTHONPATH": f"{packages}{os.pathsep}{ROOT}"}
            processes.append(_start_node([*place, *role], ports, cpus_per_node, own, folder / f"{address}.log"))
            addresses = f"http://127.0.0.1:{dashboard}", f"{HEAD}:{gcs}", f"{HEAD}:{client}"
            cluster = LoopbackCluster(*addresses, token, environment, tuple(processes))
            _wait_for_nodes(cluster)
        yield cluster
    finally:
        for process in reversed(processes):
            _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _start_node(role: list[str], ports: list[int], cpus: int, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    names = ("object-manager", "node-manager", "dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
    fixed = [f"--{name}-port={port}" for name, port in zip(names, ports, strict=True)]
    command = ["ray", "start", "--block", f"--num-cpus={cpus}", "--num-gpus=0", "--object-store-memory=100000000", "--disable-usage-stats"]
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, "--min-worker-port=0", "--max-worker-port=0", *fixed, *role],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait_for_nodes(cluster: LoopbackCluster) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if sum(node["state"] == "ALIVE" for node in cluster.list_states("nodes")) == len(cluster.processes):
                return
        time.sleep(0.3)
    logs = [log.read_text(errors="replace")[-2000:] for log in Path(cluster.environment["RAY_TMPDIR"]).glob("127*.log")]
    raise TimeoutError(f"{cluster.dashboard}: {len(cluster.processes)} nodes did not start within {_START_SECONDS} s\n" + "\n".join(logs))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End one node and all that it started, and nothing else: ``ray stop`` would end every cluster of this machine."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(family, timeout=10)
    process.wait()
