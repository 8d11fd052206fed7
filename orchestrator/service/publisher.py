"""A version into a running engine, as ``ultraedit publish`` does it, and out of it again.

The version is laid out as a finished run at STATE/published/run; exports and the record of publications are beside it, so that
all versions share one record, and what was served before can be loaded again. The command runs in a process of its own, whose
memory is free again when it ends.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editing.errors import InputError, UltraEditError
from orchestrator.publish.store import LIVE, Publication, Store
from orchestrator.run.description import describe_run
from orchestrator.run.directory import FORMAT, RUN, link_or_copy
from orchestrator.run.journal import RunState
from orchestrator.run.live import LiveRun
from orchestrator.service.folders import StateFolder

_TIMEOUT = 1800.0


class PublishFailed(UltraEditError):
    """An engine does not serve a version as it should."""


class Publisher:
    """Publishes versions of one service.

    Args:
        folder: The state folder.
        run: The run, which describes the model.
    """

    def __init__(self, folder: StateFolder, run: LiveRun) -> None:
        self._folder, self._live = folder, run
        self._path = folder.path / "published" / "run"

    def publish(self, row: Mapping[str, Any], target: str, name: str) -> Publication:
        """Bring a version into an engine under a name, asked and verified there.

        Raises:
            PublishFailed: It is not live there; what was served before is.
        """
        self._lay_out(row)
        self._call("publish", str(self._path), "--to", target, "--name", name, "--rollback-on-failure", "--verify", "20")
        return self._last(target, name)

    def take_back(self, number: int) -> None:
        """Serve what was served before a publication.

        Raises:
            PublishFailed: The engine refuses.
        """
        self._call("published", str(self._path), "--take-back", str(number))

    def _last(self, target: str, name: str) -> Publication:
        shown = f"folder:{Path(target.removeprefix('folder:')).resolve()}" if target.startswith("folder:") else target
        found = [p for p in Store(self._path).publications() if p.target == shown and p.name == name]
        if not found or found[-1].outcome != LIVE:
            raise PublishFailed(f"publish: {target}: {found[-1].reason if found else 'no record was written'}")
        return found[-1]

    def _lay_out(self, row: Mapping[str, Any]) -> None:
        if not self._folder.has_state(row["number"]):
            raise InputError(f"version: the weights of version {row['number']} are no longer kept; a newer one can be published")
        checkpoint, source = self._folder.checkpoint(row), self._folder.run(row["run"])
        partial = self._path.with_name("run.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        state = RunState.from_stored(checkpoint)
        (partial / "ledger").mkdir()
        for part in sorted((source / "ledger").glob("part-*.parquet"))[: state.num_ledger_parts]:
            link_or_copy(str(part), str(partial / "ledger" / part.name))
        for name, length in (("turns.jsonl", state.turns_bytes), ("rejected.jsonl", state.rejected_bytes)):
            (partial / name).write_bytes((source / name).read_bytes()[:length])
        shutil.copytree(checkpoint.path, partial / "checkpoints" / checkpoint.path.name, copy_function=link_or_copy)
        described = describe_run(self._live.config, self._live.worker.describe(), state)
        values = {**FORMAT.tag, **described, "digests_after": row["digests"], "mlflow_run_id": None}
        (partial / RUN).write_text(json.dumps(values, indent=2, default=str))
        shutil.rmtree(self._path, ignore_errors=True)
        partial.rename(self._path)

    def _call(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "orchestrator", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            raise PublishFailed(f"publish: took longer than {_TIMEOUT:g} s") from None
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("error:")] or done.stderr.splitlines()[-1:] or ["it failed"]
            raise PublishFailed(lines[-1].removeprefix("error: "))
