"""From what state a run begins: fresh, where an unfinished run stopped, or at the end of a finished one."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from editing import InputError
from editing.datasets import EditFile
from editing.model.joining import Join
from orchestrator.digest import InputDigest
from orchestrator.run.checkpoint import STATE, Checkpoints
from orchestrator.run.directory import RunDirectory, find_unfinished
from orchestrator.run.journal import RunState
from orchestrator.run.run_config import RunConfig
from workers.worker import Worker

logger = logging.getLogger("ultraedit")

_OLD_JOIN: Join = "published"
"""Of runs that have no such setting."""

_SETTINGS = ("edits_per_turn", "group_size", "batch_tokens", "seed", "warm_up")


def describe_source(source: EditFile, limit: int | None) -> dict[str, Any]:
    """Path, format, SHA-256 (not known yet) and limit of an edit file."""
    return {"path": str(source.path), "format": source.format.name, "sha256": None, "limit": limit}


def settings_of(config: RunConfig, worker: Worker) -> dict[str, Any]:
    """Everything that decides the weights, resolved."""
    described = worker.describe()
    return {
        **{name: described[name] for name in ("modules", "learning_rate", "dtype", "preserve_text_sha256")},
        **described["method"],
        **{name: getattr(config, name) for name in _SETTINGS},
    }


def fresh_state(config: RunConfig, worker: Worker, source: dict[str, Any]) -> RunState:
    """The state before the first edit."""
    return RunState(
        config=config.as_dict(), settings=settings_of(config, worker), base=worker.fingerprint(), base_digests=worker.digest(), source=source
    )


def resumed_state(
    out: RunDirectory, config: RunConfig, worker: Worker, source: dict[str, Any], digest: InputDigest
) -> tuple[RunState | None, Path | None]:
    """The state of the newest valid checkpoint, and its file; nothing if there is no run to go on with.

    A finished run goes on with another input: its edits are appended. To tell whether it is another, all of it is read.

    Raises:
        InputError: The input, the settings or the base model are not those of the run that is there.
    """
    if not out.is_unfinished and (out.path / "run.json").is_file():
        out.branch()
    checkpoint = Checkpoints(out.staging / "checkpoints").newest()
    if checkpoint is None:
        return None, None
    state = RunState(**checkpoint.state)
    check_same_run(state, settings_of(config, worker), worker.fingerprint())
    source = {**source, "sha256": digest.result()}
    changed = next((name for name in ("sha256", "limit") if source[name] != state.source[name]), None)
    if changed and not state.input_done:
        raise InputError(
            f"resume: the run has not finished its input {state.source['path']} ({changed} {_short(state.source[changed])}); "
            f"{source['path']} ({changed} {_short(source[changed])}) is another: resume with the first one, or give --overwrite"
        )
    if source["sha256"] != state.source["sha256"]:
        state.source, state.sources, state.record, state.taken, state.input_done = source, state.sources + 1, 0, 0, False
        logger.info("appending %s", source["path"])
    elif changed:
        state.source, state.input_done = source, False
    return state, checkpoint.path / STATE


def _short(value: object) -> str:
    return str(value)[:12]


def stored_config(path: Path) -> dict[str, Any]:
    """The configuration that the run at a path was begun with, finished or not.

    Raises:
        InputError: There is no run.
    """
    folder = find_unfinished(path) or path
    checkpoint = Checkpoints(folder / "checkpoints").newest()
    if checkpoint is None:
        raise InputError(f"resume: {path} holds no run with a checkpoint, and there is no unfinished one; check the path, or begin a new run")
    return {"join": _join_of(checkpoint.state["settings"]), **checkpoint.state["config"], "output": str(path), "overwrite": False}


def with_stored_join(config: RunConfig) -> RunConfig:
    """The same, with the rule of the run that is there, if one is and none was given: older runs joined as published.

    Raises:
        InputError: The rule that was given is not usable.
    """
    path = Path(config.output)
    checkpoint = Checkpoints((find_unfinished(path) or path) / "checkpoints").newest()
    if checkpoint is None or config.join is not None or "join" in checkpoint.state["settings"]:
        return config
    return replace(config, join=_OLD_JOIN)


def _join_of(settings: dict[str, Any]) -> Any:
    return settings.get("join", _OLD_JOIN)


def check_same_run(state: RunState, settings: dict[str, Any], fingerprint: str) -> None:
    """Refuse to go on with other settings or another model.

    Raises:
        InputError: Naming the first difference.
    """
    for name, then in ({"join": _join_of(state.settings)} | state.settings).items():
        if settings.get(name, then) != then:  # an older version's settings may have one that decides nothing any more
            raise InputError(f"resume: {name} was {then!r} in the run that is there, now it is {settings[name]!r}; give the same, or --overwrite")
    if fingerprint != state.base:
        raise InputError("resume: the base model is not the one that the run began with; give that one, or --overwrite")
