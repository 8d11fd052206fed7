"""``ultraedit serve``: live editing as a service; ``ultraedit audit verify``: whether its log is what was written."""

from functools import partial
from pathlib import Path
from typing import Any

import rich_click as click
from click.exceptions import Exit

from editing.errors import InputError
from orchestrator.cli.console import screen
from orchestrator.cli.help import SETTINGS, Group, command
from orchestrator.cli.options import COUNT, FILE, FOLDER, NAMED_MODEL, NUMBER, WHOLE, cluster, memory, method, model_and_data, tracking

_service = partial(click.option, panel="Service")
_turns = partial(click.option, panel="Turns")


@command("serve")
@model_and_data("--model", **NAMED_MODEL, help="Folder or Hugging Face Hub id of the model.")
@model_and_data("--state", **FOLDER, help="Folder for all that the service keeps; made if missing.")
@model_and_data("--name", metavar="NAME", help="What clients call the model. [default: the last part of --model]")
@model_and_data("--config", "config_file", **FILE, help="YAML file with any of these options, gates and options of a run. The command line wins.")
@_service("--host", metavar="ADDRESS", help="Address to listen on. [default: 127.0.0.1]")
@_service("--port", **WHOLE, help="Port to listen on; 0 takes a free one. [default: 8080]")
@_service("--database", metavar="URL", envvar="ULTRAEDIT_DATABASE", help="postgresql://USER@HOST/NAME. [default: SQLite in --state]")
@_service("--role", type=click.Choice(("all", "front", "writer")), help="The API and the writer, or one of them. [default: all]")
@_service("--publish", metavar="ADDRESS", help="Engine that live versions go to: vllm://, sglang:// or llamacpp://HOST:PORT.")
@_service("--chat/--no-chat", default=None, help="Answer questions to the model here. [default: chat]")
@_turns("--turn-edits", **COUNT, help="Form a turn when N edits wait. [default: 100]")
@_turns("--turn-seconds", **NUMBER, help="Or when the oldest has waited X seconds. [default: 60]")
@_turns("--require-approval", is_flag=True, default=None, help="Edits wait for an approver.")
@_turns("--auto-publish/--no-auto-publish", default=None, help="A version that passed its gates is live at once. [default: auto-publish]")
@_turns("--keep-versions", **COUNT, help="Newest versions whose weights are kept. [default: 20]")
@method("--preset", metavar="NAME|FILE", help="Settings by name. [default: the model's own preset]")
@method("--modules", metavar="NAMES", help="Modules to edit, comma separated. [default: the preset's]")
@method("--learning-rate", **NUMBER, help="Scale of the targets. [default: the preset's]")
@method("--framings", metavar="NAMES", help="Ways to write each edit. [default: the preset's, else auto]")
@memory("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N. [default: auto]")
@memory("--device-memory", metavar="SIZE", help="Memory to use, such as 6GiB, or auto. [default: hold the whole model]")
@cluster("--shards", **WHOLE, help="Workers that one copy of the model is cut over. [default: 1]")
@cluster("--replicas", **WHOLE, help="Copies of the model; each captures a share of every turn. [default: 1]")
@tracking("--tracking-uri", metavar="URI", help="MLflow tracking URI, or none. [default: none]")
def serve_command(config_file: Path | None, **flags: Any) -> None:
    """Take facts over HTTP, write them in turns, prove each turn, and take back what fails.

    The first start prints a token, once. What is asked for is documented at /openapi.json.
    """
    _ready()
    from orchestrator.service.config import RUN_FLAGS, ServeConfig
    from orchestrator.service.serve import serve

    own = {name: value for name, value in flags.items() if name not in RUN_FLAGS}
    code = serve(ServeConfig.build({**own, "run": {name: flags[name] for name in RUN_FLAGS}}, config_file))
    if code:
        raise Exit(code)


@click.group("audit", cls=Group, context_settings=SETTINGS)
def audit() -> None:
    """The audit log of a service."""


@audit.command("verify")
@click.option("--state", **FOLDER, help="The service's state folder.")
@click.option("--database", metavar="URL", envvar="ULTRAEDIT_DATABASE", help="Its database, where it is not in the state folder.")
@click.option("--head", metavar="HASH", help="Hash of an entry that must be in the log: its end as it was known at some time.")
def audit_verify(state: Path | None, database: str | None, head: str | None) -> None:
    """Check that nothing in the log, in the history of the edits and in their content was changed since it was written."""
    _ready()
    from orchestrator.service.audit import verify
    from orchestrator.service.database import Database, sqlite_url

    if database is None and (state is None or not (state / "service.db").is_file()):
        raise InputError("state: expected the folder of a service with its service.db, or give --database")
    opened = Database(database or sqlite_url((state or Path()) / "service.db"))
    with opened.reading() as connection:
        found = verify(connection, head)
    screen().print(
        f"intact: {found.entries} entries, {found.events} changes of {found.edits} edits; the last entry's hash is {found.head}", soft_wrap=True
    )


def _ready() -> None:
    """Refuse to go on where the service's own packages are missing.

    Raises:
        InputError: Naming the first.
    """
    from importlib.util import find_spec

    for package in ("fastapi", "uvicorn", "sqlalchemy", "jinja2"):
        if find_spec(package) is None:
            raise InputError(f"serve: the package {package} is not installed; install the extra [service]")
