"""``ultraedit publish``: a run's edits into a running engine, verified there; ``ultraedit published``: what was, and its taking back."""

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from editing.errors import InputError, UltraEditError
from orchestrator.cli.console import messages, screen
from orchestrator.cli.help import command
from orchestrator.cli.libraries import ready_libraries
from orchestrator.cli.options import COUNT, NAMED_MODEL, POSITIVE, RANK, WHOLE, run_dir

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.export.reference import Reference
    from orchestrator.export.source import RunSource
    from orchestrator.publish.engines import Engine

_TOKEN = "ULTRAEDIT_ENGINE_TOKEN"
_FOLDER = "folder:"

_timeout = click.option("--timeout", **POSITIVE, default=120, show_default=True, help="Seconds that one answer of the engine may take.")
_token_env = click.option("--token-env", metavar="NAME", default=_TOKEN, show_default=True, help="Environment variable with the engine's API key.")
_model = click.option("--model", **NAMED_MODEL, help="The unedited model, if it is no longer where the run had it.")


@command("publish")
@run_dir
@click.option("--to", metavar="ADDRESS", required=True, help="vllm://HOST:PORT, sglang://HOST:PORT, llamacpp://HOST:PORT or folder:PATH.")
@click.option("--how", type=click.Choice(("adapter", "weights")), default="adapter", show_default=True, help="As an adapter, or over the weights.")
@click.option("--name", metavar="NAME", default="edited", show_default=True, help="Name under which the engine serves the adapter.")
@click.option("--verify", **COUNT, default=50, show_default=True, help="Edits that the engine is asked about, with their locality probes.")
@click.option("--tolerance", type=click.FloatRange(0, 1, max_open=True), metavar="X", default=0.1, show_default=True, help="Share that may differ.")
@click.option("--rollback-on-failure", "rollback", is_flag=True, help="Load the former version again if the new one does not answer as it should.")
@click.option("--rank", **RANK, default="auto", show_default=True, help="Largest rank of the adapter; auto loses nothing but rounding.")
@_timeout
@_token_env
@_model
def publish_command(run_dir: Path, to: str, timeout: float, token_env: str, model: str | None, **options: Any) -> None:
    """Bring a finished run into a running engine.

    Then the engine is asked about edits and locality probes, and its answers are held against the edited model's.
    """
    engine_of(to, timeout, token_env)  # a wrong address is refused before anything is loaded
    ready_libraries()
    from orchestrator.cli.publish_tables import show_verdict
    from orchestrator.export.reference import Reference
    from orchestrator.export.source import RunSource
    from orchestrator.progress import Progress
    from orchestrator.publish.publishing import PublishOptions, publish
    from orchestrator.publish.store import LIVE

    asked = PublishOptions(**options)
    asked.check()
    source = RunSource(run_dir, model)
    reference = cache(lambda: Reference(source))
    outcome = publish(source, open_target(to, timeout, token_env, source, reference), asked, Progress(messages()), reference)
    if outcome.verdict is not None:
        show_verdict(outcome.verdict, screen())
    publication = outcome.publication
    if publication.outcome != LIVE:
        raise UltraEditError(f"publish: publication {publication.number} is not live ({publication.outcome}): {publication.reason}")
    called = f"as {publication.name}, " if publication.name else ""
    screen().print(f"live: publication {publication.number}, {called}{publication.edits} edits, {to} ({publication.engine})", soft_wrap=True)


@command("published")
@run_dir
@click.option("--take-back", **WHOLE, help="Number of a publication: serve what was served before it, or the unedited model.")
@_timeout
@_token_env
@_model
def published_command(run_dir: Path, take_back: int | None, timeout: float, token_env: str, model: str | None) -> None:
    """List what was published of a run, or take a publication back."""
    ready_libraries()
    from orchestrator.cli.publish_tables import show_publications
    from orchestrator.publish.store import Store

    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: is no folder of a run")
    store = Store(run_dir)
    if take_back is not None:
        from orchestrator.export.reference import Reference
        from orchestrator.export.source import RunSource
        from orchestrator.publish.publishing import take_back as take_it_back

        source = RunSource(run_dir, model)
        target = next((p.target for p in store.publications() if p.number == take_back), None)
        if target is None:
            raise InputError(f"take-back: there is no publication {take_back}; 'ultraedit published {run_dir}' lists them")
        take_it_back(source, open_target(target, timeout, token_env, source, cache(lambda: Reference(source))), store, take_back)
    show_publications(store.publications(), screen())


def engine_of(to: str, timeout: float, token_env: str) -> "Engine | None":
    """The engine at an address; ``None`` for a folder.

    Raises:
        InputError: It is no address.
    """
    if to.startswith(_FOLDER) and to != _FOLDER:
        return None
    from orchestrator.publish.engines import open_engine

    return open_engine(to, token=os.environ.get(token_env) or None, timeout=timeout)


def open_target(to: str, timeout: float, token_env: str, source: "RunSource", reference: "Callable[[], Reference]") -> "Engine":
    """The engine or folder at an address."""
    from orchestrator.publish.folder import FolderEngine

    return engine_of(to, timeout, token_env) or FolderEngine(Path(to.removeprefix(_FOLDER)), source, reference)
