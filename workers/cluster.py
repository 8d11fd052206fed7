"""Where actors run: the connection to Ray, and one placement group for every shard of every replica.

The only file that names placement groups. It compares the request with the cluster's resources before it reserves any: a request
that cannot be met is an error within seconds, where Ray would wait for ever.
"""

import contextlib
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.core.generated.ray_client_pb2 import ClusterInfoRequest, ClusterInfoType  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from editing.errors import InputError, WorkerLost, first_line

logger = logging.getLogger("ultraedit")

_PROBE_TIMEOUT = 10.0
"""Seconds to connect to a cluster's host, and for its answer."""


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """How many actors, what each needs, and where.

    Attributes:
        shards: Shards of a model copy.
        replicas: Copies of the model.
        address: ``local`` starts a cluster on this machine for this run only, ``auto`` uses the running one, or ``ray://HOST:PORT``.
        resources: What one shard needs, by Ray's names in lower case; by default one GPU where there are GPUs, else one CPU.
        placement_timeout: Seconds to wait for a cluster that scales up; 0 does not wait.
    """

    shards: int = 1
    replicas: int = 1
    address: str = "local"
    resources: Mapping[str, float] = field(default_factory=dict)
    placement_timeout: float = 0.0

    @property
    def num_actors(self) -> int:
        return self.shards * self.replicas


class Cluster:
    """A connection to Ray, with reserved resources for every actor of a run.

    Args:
        spec: The request.

    Raises:
        InputError: There is no such cluster, or it is too small; one line with the resources that it has.
    """

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self._opened_here = not ray.is_initialized()  # else other code in this process is connected, and its connection is used
        if self._opened_here:
            connect(spec.address, self._local_cpus())
        try:
            self.resources = {**self._default_resources(), **spec.resources}
            self._placement_group = self._reserve()
        except BaseException:
            self.close()
            raise

    def actor_options(self, index: int) -> dict[str, Any]:
        """Options that put the actor of a world rank into its bundle of the placement group."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        custom = {name: amount for name, amount in self.resources.items() if name not in ("CPU", "GPU")}
        return {
            "num_cpus": self.resources.get("CPU", 0),
            "num_gpus": self.resources.get("GPU", 0),
            "resources": custom,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._placement_group, placement_group_bundle_index=index),
        }

    def nodes(self) -> list[str]:
        """Address of each actor's node."""
        places = placement_group_table(self._placement_group)["bundles_to_node_id"]
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        return [addresses[places[index]] for index in range(self.spec.num_actors)]

    def close(self) -> None:
        """Remove the placement group; end a cluster that was started for this run."""
        if not ray.is_initialized():
            return
        if hasattr(self, "_placement_group"):
            with contextlib.suppress(Exception):  # a cluster that is gone has none to remove, and must not hide why it is closed
                remove_placement_group(self._placement_group)
            del self._placement_group
        if self._opened_here:
            ray.shutdown()

    def _local_cpus(self) -> int:
        """A local cluster offers as many cores as the shards need, even if the machine has fewer."""
        wanted = self.spec.num_actors * {k.upper(): v for k, v in self.spec.resources.items()}.get("CPU", 1)
        return max(os.cpu_count() or 1, int(wanted) + 1)

    def _default_resources(self) -> dict[str, float]:
        if self.spec.placement_timeout and not self.spec.resources:
            raise InputError("placement-timeout: the resources of a cluster before it grows are not known; give --resources-per-shard, such as gpu=1")
        return {"GPU": 1.0} if ray.cluster_resources().get("GPU") else {"CPU": 1.0}

    def _reserve(self) -> PlacementGroup:
        deadline = time.monotonic() + self.spec.placement_timeout
        bundles = [dict(self.resources) for _ in range(self.spec.num_actors)]
        shortage = self._shortage()
        if shortage and not self.spec.placement_timeout:
            raise InputError(shortage)
        if shortage:
            logger.info("waiting   %s; up to %.0f s for the cluster to grow", shortage, self.spec.placement_timeout)
        group: PlacementGroup = placement_group(bundles, strategy="PACK")  # a group that waits is what an autoscaler sees
        if group.wait(max(10.0, deadline - time.monotonic())):
            return group
        remove_placement_group(group)
        raise InputError(self._shortage() or f"the cluster could not reserve resources for {self.spec.num_actors} actors in time; see 'ray status'")

    def _shortage(self) -> str | None:
        """Which resources are missing, as a message; ``None`` if there are enough for all actors."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        free = ray.available_resources()
        for name, amount in self.resources.items():
            total, fits = sum(n.get(name, 0) for n in nodes), sum(int(n.get(name, 0) // amount) for n in nodes if amount)
            needed = self.spec.num_actors * amount
            if amount and (fits < self.spec.num_actors or free.get(name, 0) < needed):
                largest = max((n.get(name, 0) for n in nodes), default=0)
                return (
                    f"shards: {self.spec.replicas} x {self.spec.shards} shards need {needed:g} {name}, {amount:g} on one node each; "
                    f"the cluster has {total:g} on {len(nodes)} nodes, at most {largest:g} on one, and {free.get(name, 0):g} free: "
                    "ask for fewer, or give --placement-timeout if it grows"
                )
        return None


def connect(address: str, num_cpus: int) -> None:
    """Connect this process to a cluster.

    Args:
        address: As :attr:`ClusterSpec.address`.
        num_cpus: Cores of a ``local`` one.

    Raises:
        InputError: No cluster answers there.
        WorkerLost: A ``local`` one did not start.
    """
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        _start_local(num_cpus, quiet)
        return
    _probe(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
    try:
        ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises whatever its many clients raise
        raise InputError(f"ray-address: {_connection_error(address, error)}") from None


def _start_local(num_cpus: int, quiet: dict[str, Any]) -> None:
    _lock_local()
    # 127.0.0.1 itself would be replaced by this machine's outer address
    loopback: dict[str, Any] = {"_node_ip_address": "127.0.0.2"} if sys.platform == "linux" else {}
    try:
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **loopback, **quiet)
    except Exception as error:  # a plain one, where its processes did not answer in time: a busy machine's may the next time
        raise WorkerLost(f"ray did not start on this machine: {first_line(error)}") from None


def _lock_local() -> None:
    """Have a local cluster accept this process and its own workers only."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Ray has read its settings when it was imported: without this its processes would want a token that this one does not send
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _probe(address: str) -> None:
    """Check that a Ray cluster listens at ``HOST:PORT``, with or without ``ray://``, and accepts this process: Ray itself would retry for minutes.

    Raises:
        InputError: Nothing listens there, it is not Ray, or it does not accept this process's token.
    """
    scheme, _, place = address.rpartition("://")
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto" and other names that Ray looks up
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_TIMEOUT).close()
        with init_grpc_channel(place) as channel:  # with the token
            method, request = _PING_REQUESTS[scheme == "ray"]
            channel.unary_unary(method)(request, timeout=_PROBE_TIMEOUT)
    except (OSError, OverflowError, grpc.RpcError, AuthenticationError) as error:
        raise InputError(f"ray-address: {_connection_error(address, error)}") from None


_PING_REQUESTS = (
    ("/ray.rpc.NodeInfoGcsService/GetClusterId", b""),
    ("/ray.rpc.RayletDriver/ClusterInfo", ClusterInfoRequest(type=ClusterInfoType.PING).SerializeToString()),
)
"""A cheap gRPC method and its request, to probe an address: of a cluster's own service, and of its Ray client server."""


def _of_traceback(lines: list[str]) -> str:
    """The first line; of a server's traceback what it was about, too."""
    return f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def _connection_error(address: str, error: Exception) -> str:
    code = error.code() if isinstance(error, grpc.Call) else None
    said = str(error.details() if isinstance(error, grpc.Call) else error)
    lines = [line.strip() for line in said.splitlines() if line.strip()] or [type(error).__name__]
    where = "the port of 'ray start --head' as HOST:PORT, or that of its Ray client server as ray://HOST:PORT"
    if code == grpc.StatusCode.UNAUTHENTICATED or isinstance(error, AuthenticationError):
        remedy = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's"
        return f"{address} did not accept this process's authentication token; {remedy}"
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return f"{address} is another port of a Ray cluster; give {where}"
    if code is not None:
        return f"the service at {address} is not a Ray cluster ({lines[0][:200]}); give {where}"
    if "ersion mismatch" in said:
        return f"{address} runs another version of Ray or Python: {' '.join(lines)[:300]}; install the same versions here"
    return f"no Ray cluster answers at {address}: {_of_traceback(lines)[:300]}; start one with 'ray start --head', or give --ray-address local"
