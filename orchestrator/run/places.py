"""Where a run's inputs are, as absolute paths: they hold from any working directory, in a Ray job, and in a later call.

Version 0.1.0 stored paths as they were given, so those of its runs hold only in the folder from which the run was started.
"""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from editing.config import EVERYDAY, NONE
from editing.errors import InputError
from editing.files.model_name import lost_folder
from orchestrator.tracking_database import absolute_uri, database_of

logger = logging.getLogger("ultraedit")

PLACES = ("model", "edits", "preset", "preserve_text", "tracking_uri")
"""Options of a run that may be paths."""


def absolute(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a run with absolute paths. What is no path, or the path of nothing that is here, stays as it was given."""
    return {name: _absolute(name, value) if name in PLACES and isinstance(value, str) else value for name, value in options.items()}


def _absolute(name: str, value: str) -> str:
    if name == "tracking_uri":
        return absolute_uri(value)
    if name == "preserve_text":
        return value if value in ("", NONE, EVERYDAY) else str(Path(value).resolve())
    is_here = {"model": Path.is_dir, "edits": _is_kept, "preset": Path.is_file}[name]
    return str(Path(value).resolve()) if value and is_here(Path(value)) else value


def _is_kept(path: Path) -> bool:
    """Whether a path holds something that can be read again; a pipe has no name of its own."""
    return path.is_file() or path.is_dir()


def find_inputs(
    run: Path, stored: Mapping[str, Any], given: Mapping[str, Any], *, can_give: Collection[str], may_be_relative: bool
) -> dict[str, Any]:
    """The options that a run was started with and those of this call, which win, once the inputs are known to be there.

    Args:
        run: The run's folder.
        stored: Options that the run was started with.
        given: Options of this call.
        can_give: Inputs that this call reads and has an option for.
        may_be_relative: Whether the stored paths may be relative.

    Raises:
        InputError: An input is not where the run had it.
    """
    options = absolute({**stored, **given})
    for name in ("model", "preset", "edits"):
        if name in given or (looked_for := _lost(name, options, can_give, may_be_relative)) is None:
            continue
        ways = [f"give it with --{name}"] if name in can_give else ["put it there again"]
        ways += ["start the command in the folder where the run was started"] if may_be_relative else []
        raise InputError(f"{run}: the run's {name} {stored[name]} was not found: there is no {looked_for}; {', or '.join(ways)}")
    return options


def _lost(name: str, options: Mapping[str, Any], can_give: Collection[str], may_be_relative: bool) -> Path | None:
    """Where an input was looked for in vain; ``None`` if it is there, or this process need not see it."""
    value = str(options[name])
    if name == "model":  # workers may see other folders
        return None if options.get("shards", 1) * options.get("replicas", 1) > 1 else lost_folder(value, may_be_relative=may_be_relative)
    needed = name in can_give if name == "edits" else value.endswith((".yaml", ".yml"))
    return Path(value).absolute() if needed and not Path(value).exists() else None


def without_lost_tracking(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a run that is tracked already, untracked if its database is not there: a new one would not know the run."""
    database = database_of(options["tracking_uri"])
    if database is None or database.exists():
        return options
    logger.warning("tracking: the run was tracked in %s, which does not exist; this call is not tracked", database)
    return {**options, "tracking_uri": NONE}
