"""``folder:PATH``: a place that other programs load from. ``PATH/NAME`` is a link that is changed in one step, to a copy that never changes."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from editing.atomic import whole_folder
from editing.errors import InputError
from editing.files.adapter import CONFIG, read_adapter
from editing.files.reader import read_weights
from orchestrator.export.certificate import CERTIFICATE, verify_folder
from orchestrator.export.exporting import Form
from orchestrator.export.reference import Reference
from orchestrator.export.source import RunSource
from orchestrator.progress import Progress
from orchestrator.publish.engines import How

_WEIGHTS = "weights"
"""The link of a version without a name."""


class FolderEngine:
    """A folder as an engine: what is asked are the files in it, read back into the run's model.

    Args:
        path: The folder; made if missing.
        source: The run.
        reference: The run's model.
    """

    def __init__(self, path: Path, source: RunSource, reference: Callable[[], Reference]) -> None:
        self.target, self._path = f"folder:{path.resolve()}", path.resolve()
        self._source, self._reference = source, reference

    def form(self, how: How) -> tuple[Form, bool]:
        return ("peft", False) if how == "adapter" else ("checkpoint", True)

    def check(self) -> str:
        if self._path.exists() and not self._path.is_dir():
            raise InputError(f"to: {self._path} is a file; expected a folder, or nothing")
        return "folder"

    def check_loadable(self, folder: Path) -> None:
        """What was exported can be copied."""

    def try_out(self, name: str, folder: Path, how: How) -> str | None:
        return str(self._copied(folder))

    def drop(self, tried: str) -> None:
        """The copy stays: it is what is loaded next."""

    def load(self, name: str, folder: Path, how: How) -> None:
        copy, link = self._copied(folder), self._path / (name or _WEIGHTS)
        if link.exists() and not link.is_symlink():
            raise InputError(f"to: {link} is there and no link of this program; give another --name or folder")
        fresh = link.with_name(f".{link.name}.{os.getpid()}")
        try:
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(copy.name)
            fresh.replace(link)
        except OSError as error:
            raise InputError(f"to: {link} could not be changed ({error.strerror or error}); it is as it was") from None

    def unload(self, name: str, folder: Path) -> None:
        (self._path / (name or _WEIGHTS)).unlink(missing_ok=True)

    def ask(self, served: str | None, prompts: Sequence[str], max_tokens: int) -> list[str]:
        return self._reference().texts(self._weights(self._path / (served or _WEIGHTS)), prompts, max_tokens)

    def _copied(self, folder: Path) -> Path:
        copy = self._path / folder.name
        if not copy.is_dir():
            try:
                with whole_folder(copy) as partial:
                    shutil.copytree(folder, partial, dirs_exist_ok=True)
            except OSError as error:
                raise InputError(f"to: {copy} could not be written ({error.strerror or error}); nothing is left of it") from None
        if (folder / CERTIFICATE).is_file():
            verify_folder(copy)
        return copy

    def _weights(self, folder: Path) -> dict[str, Tensor]:
        """The edited modules' weights as who loads the folder will have them."""
        if (folder / CONFIG).is_file():
            base, linears = self._source.snapshot(0, Progress.silent()).held, self._source.linears
            return {name: base[name].float() + linears[name].turned(left @ right) for name, (left, right) in read_adapter(folder).items()}
        return read_weights(folder, self._source.modules, self._source.dtype)
