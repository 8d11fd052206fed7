"""The configuration of a service: defaults, a YAML file, and command-line flags, in this order."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from editing.config import check_number, check_whole
from editing.errors import InputError
from orchestrator.service.database import sqlite_url

_OWN_RUN_OPTIONS = ("edits", "output", "format", "limit", "overwrite", "strict", "save", "warm_up")
"""Options of a run that a service sets itself, or has no use for."""

RUN_FLAGS = ("preset", "modules", "learning_rate", "framings", "device", "device_memory", "shards", "replicas", "tracking_uri")
"""Options of a run that the command line has; a YAML file may give any other under ``run``."""


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Questions with answers that are asked after every turn.

    Attributes:
        name: What the score is called.
        file: JSON lines with ``prompt`` and ``answer``.
        at_least: Smallest share of right answers.
    """

    name: str
    file: str
    at_least: float


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """When a turn is kept. Shares are from 0 to 1.

    Attributes:
        efficacy: Smallest mean efficacy of the turn's edits.
        edit_efficacy: Smallest efficacy of one edit; one below it is what "did it" in a turn whose mean is too small.
        old_efficacy_drop: Largest fall of the mean efficacy of a sample of older edits.
        old_sample: Size of that sample.
        probes: Smallest share of the person's own probes whose answer is as right as it was before the turn.
        retention: Smallest share of the built-in probes that keep the unedited model's answer.
        perplexity: Largest perplexity on a fixed text, as a multiple of the unedited model's.
        weight_growth: Largest growth of the norm of an edited weight, as a share.
        tasks: Scores that are measured as well.
    """

    efficacy: float = 0.6
    edit_efficacy: float = 0.5
    old_efficacy_drop: float = 0.2
    old_sample: int = 20
    probes: float = 1.0
    retention: float = 0.5
    perplexity: float = 2.0
    weight_growth: float = 0.3
    tasks: tuple[TaskScore, ...] = ()

    def __post_init__(self) -> None:
        for name in ("efficacy", "edit_efficacy", "old_efficacy_drop", "probes", "retention", "perplexity", "weight_growth"):
            check_number(f"gates.{name}", getattr(self, name), or_zero=True)
        check_whole("gates.old_sample", self.old_sample, at_least=1)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Everything that a service is started with.

    Attributes:
        model: Folder or Hub id of the model.
        state: The state folder.
        name: What the model is called by clients; by default the last part of ``model``.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        database: Address of the database; by default SQLite in the state folder.
        publish: Address of an engine that each live version is published to, as ``vllm://HOST:PORT``.
        publish_name: Name of the adapter there.
        auto_publish: Whether a version that has passed its gates is live at once.
        require_approval: Whether an edit waits for an approver.
        turn_edits: A turn is formed when so many edits wait.
        turn_seconds: Or when the oldest of them has waited so long.
        keep_versions: Newest versions whose weights are kept.
        role: ``all``, or ``front`` for the API alone, or ``writer`` for the writer alone.
        chat: Whether the model can be asked here.
        writer_threads: Threads of the writer's computations; by default one core is left to the API.
        rate: Requests a second that one token may make.
        burst: Requests that it may make at once.
        max_body: Bytes of a request's body.
        max_edits: Edits of one request.
        allowed_hosts: Further names by which clients may call this service.
        webhooks_to_private: Whether webhooks may go to addresses of this machine and of private networks.
        gates: When a turn is kept.
        run: Options of the run: modules, learning_rate, preset, shards, replicas, device_memory and so on.
    """

    model: str
    state: Path
    name: str = ""
    host: str = "127.0.0.1"
    port: int = 8080
    database: str = ""
    publish: str | None = None
    publish_name: str = "edited"
    auto_publish: bool = True
    require_approval: bool = False
    turn_edits: int = 100
    turn_seconds: float = 60.0
    keep_versions: int = 20
    role: str = "all"
    chat: bool = True
    writer_threads: int | None = None
    rate: float = 200.0
    burst: int = 400
    max_body: int = 8 * 2**20
    max_edits: int = 1000
    allowed_hosts: tuple[str, ...] = ()
    webhooks_to_private: bool = False
    gates: GateLimits = field(default_factory=GateLimits)
    run: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("turn_edits", "keep_versions", "burst", "max_body", "max_edits"):
            check_whole(name, getattr(self, name), at_least=1)
        for name in ("turn_seconds", "rate"):
            check_number(name, getattr(self, name), or_zero=name == "turn_seconds")
        if not isinstance(self.port, int) or not 0 <= self.port < 2**16:
            raise InputError(f"port: expected a number from 0 to 65535, found {self.port!r}")
        if self.role not in ("all", "front", "writer"):
            raise InputError(f"role: expected all, front or writer, found {self.role!r}")
        if any(not (sign.isalnum() or sign in "-_.") for sign in self.served_name):
            raise InputError(f"name: expected letters, digits, -, _ and ., found {self.served_name!r}; give --name")
        for option in _OWN_RUN_OPTIONS:
            if option in self.run:
                raise InputError(f"run.{option}: is the service's own; expected another option of 'ultraedit edit'")

    @classmethod
    def build(cls, flags: Mapping[str, Any], file: Path | None = None) -> "ServeConfig":
        """Merge a YAML file and flags over the defaults; flags win, ``None`` means not given.

        Raises:
            InputError: A key is unknown, a required one is missing, or a value is not allowed.
        """
        given = {name: value for name, value in flags.items() if value is not None and name != "run"}
        values = {**(_read(file) if file else {}), **given}
        values["run"] = {**values.get("run", {}), **{name: value for name, value in flags.get("run", {}).items() if value is not None}}
        known = {f.name for f in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise InputError(f"{file}: unknown key {unknown[0]!r}; expected one of {', '.join(sorted(known))}")
        for name in ("model", "state"):
            if not values.get(name):
                raise InputError(f"{name}: missing; give --{name}" + (f" or set it in {file}" if file else ""))
        values["state"] = Path(values["state"]).resolve()
        values["gates"] = _gates(values.get("gates") or {})
        values["allowed_hosts"] = tuple(values.get("allowed_hosts") or ())
        return cls(**values)

    @property
    def served_name(self) -> str:
        """What the model is called by clients."""
        return self.name or Path(self.model).name

    @property
    def database_url(self) -> str:
        """The database's address."""
        return self.database or sqlite_url(self.state / "service.db")

    def run_options(self) -> dict[str, Any]:
        """What :meth:`orchestrator.run.run_config.RunConfig.build` is given."""
        limits = {
            "min_probe_retention": self.gates.retention,
            "max_perplexity_growth": self.gates.perplexity,
            "max_weight_growth": self.gates.weight_growth,
        }
        own = {"model": self.model, "edits": "live", "output": "live", "watch_every": 1}
        return {"tracking_uri": "none", "edits_per_turn": self.turn_edits, **self.run, **limits, **own}


def plain_config(config: ServeConfig) -> dict[str, Any]:
    """A configuration as JSON can have it, for :meth:`ServeConfig.build`."""
    values = {**asdict(config), "state": str(config.state)}
    values["gates"]["tasks"] = [dict(task) for task in values["gates"]["tasks"]]
    return values


def _gates(values: Any) -> GateLimits:
    known = {f.name for f in fields(GateLimits)}
    if not isinstance(values, dict) or values.keys() - known:
        raise InputError(f"gates: expected some of {', '.join(sorted(known))}, found {values!r}")
    try:
        tasks = tuple(TaskScore(**task) for task in values.get("tasks") or ())
    except TypeError:
        raise InputError(f"gates.tasks: expected a list of name, file and at_least, found {values['tasks']!r}") from None
    return GateLimits(**{**values, "tasks": tasks})


def _read(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: expected keys and values like 'turn_edits: 50', found {type(loaded).__name__}")
    return {str(key).replace("-", "_"): value for key, value in loaded.items()}
