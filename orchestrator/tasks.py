"""Tasks of lm-evaluation-harness: what a model can do beside its edits, before and after.

The harness reads the tasks and scores the answers; the model runs as everywhere else in this project, streamed from disk where it does not fit.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editing.errors import InputError, first_line, ran_out_of_memory
from editing.model.decoder import Decoder

_RESAMPLED = 100
"""Times that a metric without a formula for its standard error is computed from a resampled set."""

_PREFIX = "task_"

_logger = logging.getLogger("ultraedit")


class Tasks:
    """Tasks that are there, by name.

    Args:
        names: Their names, as the harness has them.
        folder: Folder of further tasks, each a YAML file.
        limit: Questions of each task; ``None`` for all of them.

    Raises:
        InputError: The harness is not installed, the folder is not there, or a task is not known.
    """

    def __init__(self, names: Sequence[str], *, folder: Path | None = None, limit: int | None = None) -> None:
        self._names, self._limit = list(names), limit
        if folder is not None and not folder.is_dir():
            raise InputError(f"task_path: {folder} is no folder; expected one with a YAML file for each task")
        try:
            from lm_eval.tasks import TaskManager
        except ImportError:
            raise InputError("tasks: lm-evaluation-harness is not installed; install the extra [tasks]") from None
        _quiet()
        self._manager: Any = TaskManager(include_path=str(folder), include_defaults=False) if folder else None
        if not folder or self._unknown():
            self._manager = TaskManager(include_path=str(folder) if folder else None)  # which reads thousands of files
        if unknown := self._unknown():
            places = f" nor in {folder}" if folder else "; --task-path names a folder of your own"
            raise InputError(f"tasks: {unknown[0]!r} is no task of lm-evaluation-harness{places}; lm-eval ls tasks lists them")

    def _unknown(self) -> list[str]:
        return [name for name in self._names if not self._manager.match_tasks([name])]

    def measure(self, decoder: Decoder, tokenizer: Any) -> dict[str, float]:
        """Metrics of a model, by ``task_<task>_<metric>``; their standard errors end in ``_stderr``.

        Raises:
            InputError: A task cannot be read, or needs what only sampling gives.
        """
        import lm_eval

        from orchestrator.harness_model import HarnessModel

        try:
            found = lm_eval.simple_evaluate(
                model=HarnessModel(decoder, tokenizer),
                tasks=self._names,
                task_manager=self._manager,
                limit=self._limit,
                bootstrap_iters=_RESAMPLED,
                log_samples=False,
            )
        except InputError:
            raise
        except Exception as error:  # whatever a task's data set raises when it cannot be loaded
            if ran_out_of_memory(error):
                raise
            raise InputError(f"tasks: {', '.join(self._names)}: cannot be measured: {type(error).__name__}: {first_line(error)}") from error
        return dict(_numbers(found["results"])) if found else {}


def _numbers(results: dict[str, dict[str, Any]]) -> list[tuple[str, float]]:
    """The harness writes ``acc,none`` and ``acc_stderr,none``: a metric and the filter of the answers, of which ``none`` is left out."""
    found = []
    for task, values in results.items():
        for name, value in values.items():
            metric, _, chosen = name.partition(",")
            if chosen and isinstance(value, (int, float)):
                kind = "_stderr" if metric.endswith("_stderr") else ""
                parts = [task, metric.removesuffix("_stderr"), *([chosen] if chosen != "none" else [])]
                found.append((_PREFIX + "_".join(parts) + kind, float(value)))
    return found


def _quiet() -> None:
    import datasets

    datasets.disable_progress_bars()
    for name in ("lm_eval", "lm-eval", "datasets", "evaluate"):
        logging.getLogger(name).setLevel(logging.ERROR)
