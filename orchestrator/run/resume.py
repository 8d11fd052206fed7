"""From what state a run begins: fresh, where an unfinished run stopped, or at the end of a finished one."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from editing import InputError
from editing.config import MethodOptions
from editing.datasets import EditFile
from editing.presets import is_preset_file
from orchestrator.digest import InputDigest
from orchestrator.run.checkpoint import STATE, Checkpoints
from orchestrator.run.directory import RunDirectory, find_unfinished, read_run
from orchestrator.run.intake import FirstLook, Intake
from orchestrator.run.journal import RunState, may_have_relative_paths
from orchestrator.run.ledger import ROLLED_BACK
from orchestrator.run.places import find_inputs, without_lost_tracking
from orchestrator.run.run_config import RunConfig, known_options
from orchestrator.run.windows import Cursor, Schedule
from orchestrator.tokenizing import RequestTokenizer
from workers.protocol import Worker

logger = logging.getLogger("ultraedit")

_OLDER_RULES: dict[str, Any] = {
    "join": "published",
    "framings": ["raw"],
    "answer_end": "none",
    "preserve_framed": False,
    "preserve_neighbours": 0,
    "preserve_alike": False,
    "preserve_outputs": 0.0,
    "small_turns": False,
    "strength_goal": 0.0,
    "prefix_dtype": "same",
}
"""What runs do that have no such settings."""

REPLAYING = "is being replayed"
"""Outcome of an input whose edits a rollback or a removal is running again; it has another at the end."""

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
        config=config.as_dict(),
        settings=settings_of(config, worker),
        base_fingerprint=worker.fingerprint(),
        base_digests=worker.digest(),
        source=source,
        preset=worker.describe()["preset"],
    )


def schedule_edits(
    out: RunDirectory, config: RunConfig, worker: Worker, look: FirstLook, digest: InputDigest, *, resume: bool = False
) -> Schedule | None:
    """The schedule of a run over an edit file.

    Args:
        out: The run's folder.
        config: The run's configuration.
        worker: Holds the unedited model.
        look: The edit file.
        digest: Its SHA-256.
        resume: Go on with the run that is there, if there is one.

    Returns:
        What the run begins from and goes through; ``None`` where the run that is there has all edits of the file.

    Raises:
        InputError: As :func:`resumed_state`.
    """
    source = describe_source(look.source, config.limit)
    state, model_state = resumed_state(out, config, worker, source, digest) if resume else (None, None)
    if state is not None and state.input_done and not out.is_resumed:
        logger.info("complete  %s has all edits of %s; nothing to do", out.path, look.source.path)
        return None
    if state is None:
        state = fresh_state(config, worker, source)
    else:
        logger.info("resuming  after turn %d, %d edits applied", state.num_turns, state.num_edits_applied)
    intake = Intake(look, RequestTokenizer.of(worker), limit=config.limit, strict=config.strict)
    begin, total = Cursor.of(state), look.num_edits(config.limit)
    return Schedule(
        state=state,
        windows=intake.windows(begin, edits_per_turn=config.edits_per_turn, turns_per_window=worker.lookahead, num_turns=state.num_turns),
        num_edits=None if total is None else max(0, total - begin.num_usable),
        model_state=model_state,
        warm_up=() if model_state else intake.first_edits(config.warm_up),
        digest=digest,
    )


def resumed_state(
    out: RunDirectory, config: RunConfig, worker: Worker, source: dict[str, Any], digest: InputDigest
) -> tuple[RunState | None, Path | None]:
    """The state of the newest valid checkpoint, and its file; nothing if there is no run to go on with.

    A finished run goes on with another input: its edits are appended. All of the input is read to tell whether it is another.

    Raises:
        InputError: The input, the settings or the base model are not those of the run that is there.
    """
    if not out.is_unfinished and (out.path / "run.json").is_file():
        read_run(out.path)  # or it is refused
        out.branch()
    checkpoint = Checkpoints(out.staging / "checkpoints").newest()
    if checkpoint is None:
        return None, None
    state = RunState.from_stored(checkpoint)
    check_same_run(state, settings_of(config, worker), worker.fingerprint())
    _take_input(state, {**source, "sha256": digest.result()})
    return state, checkpoint.path / STATE


def _take_input(state: RunState, source: dict[str, Any]) -> None:
    """Have a run go on with an input: the one that it was reading, or another whose edits are appended.

    Raises:
        InputError: The run has not finished the one before.
    """
    before = state.source  # version 0.1.0 has the outcome in the place of the SHA-256, which is then no input's
    outcome = before.get("outcome")
    if outcome == REPLAYING:
        raise InputError("resume: a rollback or removal of this run was interrupted; give that command again, or give --overwrite to begin anew")
    changed = next((name for name in ("sha256", "limit") if source[name] != before[name]), None)
    if changed and not state.input_done:
        raise InputError(
            f"resume: the run has not finished its input {before['path']} ({changed} {_shortened(before[changed])}), and {source['path']} "
            f"({changed} {_shortened(source[changed])}) is another; resume with the first one, or give --overwrite to begin anew"
        )
    if changed == "sha256" or outcome == ROLLED_BACK:  # after a rollback the same file may be given again
        state.source, state.num_sources, state.last_record, state.num_usable_edits, state.input_done = source, state.num_sources + 1, 0, 0, False
        logger.info("appending %s", source["path"])
    elif changed:
        state.source, state.input_done = source, False


def _shortened(value: object) -> str:
    return str(value)[:12]


def stored_config(path: Path, given: Mapping[str, Any] | None = None, *, can_give: Collection[str] = ("model",)) -> dict[str, Any]:
    """The configuration that the run at a path was started with, finished or not, and what is given anew.

    Args:
        path: The run's folder.
        given: Options of this call; those that are ``None`` were not given.
        can_give: Inputs that this call reads and has an option for: of ``model``, ``preset`` and ``edits``.

    Raises:
        InputError: There is no run, or an input is not where the run had it.
    """
    folder = find_unfinished(path) or path
    checkpoint = Checkpoints(folder / "checkpoints").newest()
    if checkpoint is None:
        raise InputError(f"resume: {path} holds no run with a checkpoint, finished or not; check the path, or begin a new run without --resume")
    state = RunState.from_stored(checkpoint)
    new = {name: value for name, value in (given or {}).items() if value is not None}
    rules, options = _rules_where_none_is_given(state, new), known_options(state.config, checkpoint.path)
    given_then = {name: rules.get(name) if value is None else value for name, value in options.items()}
    stored = {**rules, **given_then, "output": str(path), "overwrite": False}
    options = find_inputs(path, stored, new, can_give=can_give, may_be_relative=may_have_relative_paths(checkpoint))
    return without_lost_tracking(options) if _is_tracked(path, state) and "tracking_uri" not in new else options


def _is_tracked(path: Path, state: RunState) -> bool:
    """Whether a run is known to a tracker: a short one may have learnt its id there after its last checkpoint."""
    return bool(state.mlflow_run_id or ((path / "run.json").is_file() and read_run(path).get("mlflow_run_id")))


def with_older_rules(config: RunConfig) -> RunConfig:
    """The same, with the rules of the run that is there where none were given: its preset's, if that is the same, and those it could not say yet."""
    path = Path(config.output)
    checkpoint = Checkpoints((find_unfinished(path) or path) / "checkpoints").newest()
    if checkpoint is None:
        return config
    state = RunState.from_stored(checkpoint)
    given = {name: value for name in ("preset", "learning_rate") if (value := getattr(config, name)) is not None}
    rules = _rules_where_none_is_given(state, given)
    return replace(config, **{name: rule for name, rule in rules.items() if getattr(config, name) is None})


def rules_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How edits are written by a run with these settings, of which an older one has only some."""
    return {name: settings.get(name, rule) for name, rule in _OLDER_RULES.items()}


def _rules_where_none_is_given(state: RunState, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a run takes from elsewhere, as they were when it began: the presets that ship with the project may have changed since.

    A preset in a file is its owner's to change, so it is read again, and a difference is refused; so is that of another preset, or of a rate in
    place of a strength.

    Args:
        state: The run's.
        given: Options that are given anew.
    """
    preset, settings = state.config.get("preset"), state.settings
    unsaid = {name: rule for name, rule in _OLDER_RULES.items() if name not in settings}
    if given.get("preset", preset) != preset or (preset is not None and is_preset_file(str(preset))):
        return unsaid
    names = [name for name in ("learning_rate", *MethodOptions.names()) if not (name in ("strength", "strength_goal") and "learning_rate" in given)]
    at_answers = tuple(name for name in settings["modules"] if name not in settings.get("subject_modules", ()))
    return {**unsaid, "modules": at_answers, **{name: settings[name] for name in names if settings.get(name) is not None}}


def check_same_run(state: RunState, settings: dict[str, Any], fingerprint: str) -> None:
    """Refuse to go on with other settings or another model.

    Raises:
        InputError: Naming the first difference.
    """
    for name, then in (state.settings | rules_of(state.settings)).items():
        if settings.get(name, then) != then:  # an older version's settings may have one that decides nothing any more
            raise InputError(f"resume: {name} was {then!r} in the run that is there, now it is {settings[name]!r}; give the same, or --overwrite")
    if fingerprint != state.base_fingerprint:
        raise InputError("resume: the base model is not the one that the run began with; give that one, or --overwrite to begin anew")
