"""Runs, made from a configuration or from a folder, and shown when they are done. Imports torch."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from editing.datasets import EditFile
from orchestrator.cli.console import messages, screen
from orchestrator.cli.run_tables import show_run
from orchestrator.progress import Progress
from orchestrator.run.coordinator import Collapsed, Coordinator
from orchestrator.run.recovery import run_to_the_end
from orchestrator.run.replay import roll_back
from orchestrator.run.resume import stored_config, with_older_rules
from orchestrator.run.run_config import RunConfig
from orchestrator.run.topology import make_worker, warn_of_what_a_job_loses
from orchestrator.tracking import make_tracker


def run_edit(config: RunConfig, *, resume: bool = False) -> None:
    """Carry out one run and show it.

    Args:
        config: The run.
        resume: Continue the run in its output folder, unfinished or finished, if there is one.

    Raises:
        UltraEditError: The run failed, or was stopped since the model was collapsing.
    """
    warn_of_what_a_job_loses(config)
    edits = config.edit_file()
    config = with_older_rules(config.with_dataset(edits)) if resume else config.with_dataset(edits)
    try:
        show_run(run_to_the_end(lambda: make_coordinator(config, edits), resume=resume), screen())
    except Collapsed as error:
        if config.on_collapse == "rollback":
            with stored_run(error.path) as coordinator:
                roll_back(coordinator, error.healthy_turn)
            error.args = (f"{error}; rolled back to turn {error.healthy_turn}, the last healthy one",)
        show_run(error.path, screen())
        raise


@contextmanager
def stored_run(path: Path, model: str | None = None) -> Iterator[Coordinator]:
    """The coordinator of a run that exists, with the options that it was started with.

    Args:
        path: The run's folder.
        model: Folder or Hub id of its unedited model, if that has moved.

    Raises:
        InputError: There is no run, or an input is not where the run had it.
    """
    with closing(make_coordinator(RunConfig.build(stored_config(path, {"model": model})))) as coordinator:
        yield coordinator


def make_coordinator(config: RunConfig, edits: EditFile | None = None) -> Coordinator:
    """The coordinator of a configuration; nothing is loaded yet. ``edits`` is its edit file, if that was opened."""
    tracker = make_tracker(config.tracking_uri, config.experiment)
    return Coordinator(config, make_worker(config), tracker, Progress(messages()), edits)
