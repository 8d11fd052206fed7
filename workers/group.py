"""One model on many workers: replicas x shards Ray actors behind the verbs of a single worker.

                 WorkerGroup.apply(turn)
    replica 0   [shard 0 | shard 1 | ...]     each captures its share of the turn's groups; rows, sums and copies go
    replica 1   [shard 0 | shard 1 | ...]     between actors by torch.distributed, never through here

Only edits, reports and paths pass through this file. A turn's hidden states stay where the prefix was run. If one actor dies
or hangs, all are replaced, and the run goes on from its last checkpoint.
"""

import contextlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray
import torch

from editing import InputError, OutOfMemory, TurnReport, UltraEditError, WorkerLost
from editing.config import RAW
from editing.errors import ran_out_of_memory
from editing.memory.calibration import USUAL_LOOKAHEAD
from editing.messages import Asked
from editing.model.generation import Written
from editing.model.joining import Joiner
from editing.model.prefix import Prefixed
from editing.monitoring.evaluation import Answers, EditResult, Predictions
from editing.monitoring.health import Vitals
from editing.turn import PreparedTurn, TokenizedEdit, Turn
from workers.actor import RemoteWorker
from workers.cluster import Cluster, ClusterSpec
from workers.engines.sharded import check_num_shards
from workers.process_groups import FirstRankFailed, Placement
from workers.protocol import USUAL_EVALUATION, Worker, WorkerSpec

_NO_ROWS = Prefixed((), None)


class WorkerGroup(Worker):
    """One model on all workers of a cluster.

    Args:
        spec: What every worker loads.
        cluster: How many workers, and where.
        timeout: Seconds after which a worker that does not answer counts as lost.
    """

    def __init__(self, spec: WorkerSpec, cluster: ClusterSpec, *, timeout: float = 1800.0) -> None:
        self.spec, self._cluster_spec, self._timeout = spec, cluster, timeout
        self._actors: list[Any] = []
        self._nodes: list[str] = []
        self._window: list[PreparedTurn] = []
        self._cluster: Cluster | None = None

    def outlook(self, num_edits: int | None = None) -> list[str]:
        return []

    def load(self) -> None:
        """Reserve places, start the actors and load the model."""
        if Path(self.spec.model).exists():  # else the workers check: they may have a folder that this process has not
            check_num_shards(self.spec.model, self._cluster_spec.shards)
        self._cluster = cluster = Cluster(self._cluster_spec)
        try:
            remote = ray.remote(RemoteWorker)
            count = self._cluster_spec.num_actors
            self._actors = [remote.options(**cluster.actor_options(i)).remote(self.spec) for i in range(count)]
            self._nodes = cluster.nodes()
            points = self._get_all([actor.rendezvous.remote() for actor in self._actors])
            self._check_model([seen for _, _, seen in points])
            address, port, _ = points[0]
            cpus = int(cluster.resources.get("CPU", 0)) or None
            loading = [actor.load.remote(self._placement(i, address, port), cpus) for i, actor in enumerate(self._actors)]
            self._known = self._get_all(loading)[0]
        except BaseException:
            self.close()
            raise

    def _check_model(self, seen: list[bool]) -> None:
        """A model that is a folder, not an id of the Hub, must be visible on every node."""
        model = self.spec.model
        if not all(seen) and (any(seen) or Path(model).exists() or Path(model).is_absolute()):
            raise InputError(
                f"{model}: {self._name(seen.index(False))} has no such folder; put the model on storage that all nodes share, "
                "under the same path on each"
            )

    def _placement(self, index: int, address: str, port: int) -> Placement:
        replica, rank = divmod(index, self._cluster_spec.shards)
        sizes = {"num_shards": self._cluster_spec.shards, "num_replicas": self._cluster_spec.replicas}
        # Ray shows an actor its own GPU only, so that its index there is always 0
        return Placement(rank=rank, replica=replica, address=address, port=port, local_rank=0, timeout=self._timeout, **sizes)

    def describe(self) -> dict[str, Any]:
        return dict(self._known["described"])

    @property
    def tokenizer(self) -> Any:
        return self.joiner.tokenizer

    @property
    def joiner(self) -> Joiner:
        return self._known["joiner"]  # type: ignore[no-any-return]

    @property
    def max_tokens(self) -> int | None:
        return self._known["max_tokens"]  # type: ignore[no-any-return]

    @property
    def lookahead(self) -> int:
        return self.spec.lookahead or USUAL_LOOKAHEAD

    @property
    def edits_at_a_time(self) -> int:
        return USUAL_EVALUATION

    def saved_size(self) -> int:
        return int(self._known["saved_size"])

    def prepare(self, turns: Sequence[Turn]) -> list[PreparedTurn]:
        shared = ray.put(list(turns))
        seconds = self._get_all([actor.prepare.remote(shared) for actor in self._actors])
        slowest = [max(each) for each in zip(*seconds, strict=True)]
        self._window = [PreparedTurn(turn, _NO_ROWS, s) for turn, s in zip(turns, slowest, strict=True)]
        return list(self._window)

    def apply(self, prepared: PreparedTurn) -> TurnReport:
        index = self._index(prepared)
        return self._get_all([actor.apply.remote(index) for actor in self._actors])[0]  # type: ignore[no-any-return]

    def observe(self, prepared: PreparedTurn) -> None:
        index = self._index(prepared)
        self._get_all([actor.observe.remote(index) for actor in self._actors])

    def measure_health(self, prepared: PreparedTurn) -> Vitals:
        index = self._index(prepared)
        return self._get_all([actor.measure_health.remote(index) for actor in self._replica(0)])[0]  # type: ignore[no-any-return]

    def evaluate(self, edits: Sequence[TokenizedEdit], known: Sequence[Answers | None] | None = None) -> tuple[list[EditResult], Predictions]:
        shares = zip(self._split(edits), self._split(known or [None] * len(edits)), strict=True)
        asked = [actor.evaluate.remote(*share) for r, share in enumerate(shares) for actor in self._replica(r)]
        parts = self._get_all(asked)[:: self._cluster_spec.shards]
        return [result for results, _ in parts for result in results], [answers for _, before in parts for answers in before]

    def write(self, prompts: Sequence[Asked], *, framing: str = RAW, unedited: bool = False, max_new_tokens: int = 12) -> list[Written]:
        shares = self._split(prompts)
        asked = [actor.write.remote(share, framing, unedited, max_new_tokens) for r, share in enumerate(shares) for actor in self._replica(r)]
        return [text for part in self._get_all(asked)[:: self._cluster_spec.shards] for text in part]

    def perplexities(self, passages: Sequence[str], known: float | None = None) -> tuple[float, float]:
        return self._get_all([actor.perplexities.remote(passages, known) for actor in self._replica(0)])[0]  # type: ignore[no-any-return]

    def digest(self) -> dict[str, str]:
        """SHA-256 of each edited module's weight, the same on every worker.

        Raises:
            UltraEditError: It is not: the replicas have drifted apart.
        """
        digests = self._get_all([actor.digest.remote() for actor in self._actors])
        for index, digest in enumerate(digests):
            if digest != digests[0]:
                name = next(n for n in digest if digest[n] != digests[0][n])
                raise UltraEditError(f"{self._name(index)} holds other weights of {name} than worker 0; go back to the last checkpoint with --resume")
        return dict(digests[0])

    def fingerprint(self) -> str:
        return str(self._get_all([actor.fingerprint.remote() for actor in self._replica(0)])[0])

    def save_state(self, path: Path) -> None:
        self._get_all([actor.save_state.remote(path.absolute()) for actor in self._actors])
        if not path.is_file():
            raise UltraEditError(f"{path}: was written by the first worker and is not visible here; --output must be on storage that all nodes share")

    def load_state(self, path: Path, watch: dict[str, Any] | None) -> None:
        self._get_all([actor.load_state.remote(path.absolute(), watch) for actor in self._actors])

    def watch_state(self) -> dict[str, Any]:
        return dict(self._get_all([self._actors[0].watch_state.remote()])[0])

    def save(self, folder: Path) -> None:
        self._get_all([actor.save.remote(folder.absolute()) for actor in self._actors])

    def close(self) -> None:
        """Kill every actor, and end the cluster if it was started for this run."""
        for actor in self._actors if ray.is_initialized() else ():
            with contextlib.suppress(Exception):  # one that is dead already
                ray.kill(actor)
        self._actors = []
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    def _replica(self, replica: int) -> list[Any]:
        shards = self._cluster_spec.shards
        return self._actors[replica * shards : (replica + 1) * shards]

    def _split(self, items: Sequence[Any]) -> list[list[Any]]:
        """Consecutive items for each replica, as evenly as possible."""
        count = self._cluster_spec.replicas
        bounds = [len(items) * r // count for r in range(count + 1)]
        return [list(items[a:b]) for a, b in pairwise(bounds)]

    def _index(self, prepared: PreparedTurn) -> int:
        return next(i for i, own in enumerate(self._window) if own is prepared)

    def _get_all(self, references: list[Any]) -> list[Any]:
        """Results of several workers, in order. The first that fails ends the wait: the others may be waiting for it.

        Raises:
            WorkerLost: A worker died, or none has answered for the timeout.
        """
        waiting = list(references)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=self._timeout)
            if not done:
                raise WorkerLost(f"{self._name(references.index(waiting[0]))} did not answer within {self._timeout:g} s")
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, FirstRankFailed) and done[0] != references[0]:
                    waiting = references[:1]  # whose error is the cause
                    continue
                raise self._as_raised_here(error, references.index(done[0])) from None
            except ray.exceptions.OutOfMemoryError as error:
                raise self._out_of_memory(references.index(done[0]), error) from None
            except ray.exceptions.RayActorError as error:
                if "creation task" in str(error):  # where an actor only imports this project
                    raise self._not_installed(references.index(done[0]), error) from None
                raise WorkerLost(f"{self._name(references.index(done[0]))} died: {_first_line(error)}") from None
        return list(ray.get(references))

    def _as_raised_here(self, error: Any, index: int) -> Exception:
        """A worker's error, as it would have been raised in this process."""
        cause = error.cause
        if ran_out_of_memory(cause):
            return self._out_of_memory(index, cause)
        if isinstance(cause, ImportError):
            return self._not_installed(index, cause)
        if isinstance(cause, torch.distributed.DistError) or _is_collective(cause):
            return WorkerLost(f"{self._name(index)} lost its connection to the other workers: {_first_line(cause)}")
        return cause if isinstance(cause, Exception) else error

    def _out_of_memory(self, index: int, error: Exception) -> OutOfMemory:
        advice = "give more --shards, a smaller --batch-tokens, --lookahead 1 or --dtype bfloat16"
        return OutOfMemory(f"{self._name(index)} is out of memory: {_first_line(error)}; {advice}")

    def _not_installed(self, index: int, error: Exception) -> InputError:
        what = next((line for line in reversed(str(error).splitlines()) if "Error: " in line), str(error)).strip()
        return InputError(f"{self._name(index)} cannot start: {what}; install this project with its extra [distributed] on every node, as it is here")

    def _name(self, index: int) -> str:
        replica, rank = divmod(index, self._cluster_spec.shards)
        node = f" on {self._nodes[index]}" if index < len(self._nodes) else ""
        return f"worker {index} (shard {rank} of replica {replica}){node}"


def _is_collective(error: Any) -> bool:
    """Whether an error is of a collective: torch reports a lost peer as a plain RuntimeError of its backend."""
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("gloo", "Gloo", "NCCL", "Connection closed by peer", "Connection reset")
    )


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
