"""A finished run as the source of an export: its edited weights after any of its turns, and those of its base."""

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from editing.config import Join
from editing.errors import InputError, ModelError
from editing.files import pretrained
from editing.files.reader import WeightReader
from editing.files.weights import WeightFiles
from editing.sharding.shards import LinearShard, is_linear, linears_of
from editing.state import stored_weights
from orchestrator.progress import Progress
from orchestrator.run.checkpoint import STATE, Checkpoints
from orchestrator.run.coordinator import Coordinator
from orchestrator.run.directory import JOURNAL, RUN, read_run
from orchestrator.run.journal import RunState
from orchestrator.run.ledger import Ledger
from orchestrator.run.replay import roll_back
from orchestrator.run.resume import rules_of, stored_config
from orchestrator.run.run_config import RunConfig
from orchestrator.run.topology import make_worker
from orchestrator.tracking import make_tracker


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The edited modules' weights after a turn, whole, on the CPU.

    Attributes:
        turn: The turn; 0 is the unedited model.
        held: By module name, as the model stores them, in the precision in which it computes.
        exact: The same before they were rounded to it, where the run kept float32 masters.
    """

    turn: int
    held: Mapping[str, Tensor]
    exact: Mapping[str, Tensor]


class RunSource:
    """A finished run.

    Args:
        path: The run's folder.
        model: Folder or Hub id of its unedited model, if that has moved.

    Attributes:
        path: The run's folder.
        options: The run's configuration.
        state: The run's state at its end.
        base: Folder or Hub id of the unedited model.
        folder: Where that lies here.
        config: Its configuration.
        dtype: Precision in which it was edited.
        modules: Names of the edited modules.

    Raises:
        InputError: There is no finished run.
        ModelError: The base model is not there.
    """

    def __init__(self, path: Path, model: str | None = None) -> None:
        self.path, self.run = path, read_run(path)
        self.options = stored_config(path, {"model": model})
        self._checkpoints = Checkpoints(path / "checkpoints").all()
        self.state = RunState.from_stored(self._checkpoints[-1])
        self.base = str(self.options["model"])
        self.folder = pretrained.local_folder(self.base)
        self.config = pretrained.load_config(self.folder)
        self.dtype = torch.float32 if self.state.settings["dtype"] == "float32" else torch.bfloat16
        self.modules: list[str] = list(self.run["digests_after"])

    @property
    def ledger(self) -> Ledger:
        """The run's edits."""
        return Ledger(self.path / "ledger")

    @cached_property
    def linears(self) -> dict[str, LinearShard]:
        """The edited modules by name, whole.

        Raises:
            ModelError: A weight has a form that no export can have.
        """
        check_modules(self.base, self._skeleton, self.modules)
        return linears_of(self._skeleton, self.modules)

    @cached_property
    def _skeleton(self) -> PreTrainedModel:
        return pretrained.make_skeleton(self.folder, self.config, self.dtype)

    @property
    def join(self) -> Join:
        """How prompts and answers met."""
        return rules_of(self.state.settings)["join"]  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """Where the run computed, if that is there."""
        return pretrained.choose_device(self.options["device"])

    @property
    def fits_in_memory(self) -> bool:
        """Whether the run held the whole model in one process."""
        return self.options["device_memory"] is None and self.options["shards"] == 1

    @property
    def last_turn(self) -> int:
        """The turn at which the run's model is now."""
        return self._checkpoints[-1].turn

    def check_turns(self, first: int, last: int) -> None:
        """Refuse turns that the run does not have.

        Raises:
            InputError: Naming the option.
        """
        if not 0 <= last <= self.last_turn:
            raise InputError(f"to-turn: expected a turn from 0 to {self.last_turn}, found {last}; {self.path} has {self.last_turn} turns")
        if not 0 <= first < last:
            raise InputError(f"from-turn: expected a turn from 0 to {last - 1}, before --to-turn {last}, found {first}")

    def snapshot(self, turn: int, progress: Progress) -> Snapshot:
        """The weights after a turn. One that no checkpoint has is run again from the ledger, in a copy that is then removed.

        Raises:
            ModelError: The base model is not the one that was edited, or a weight has a form that no export can have.
            InputError: The run cannot be replayed.
        """
        if turn == 0:
            return self._unedited()
        found = next((c.path / STATE for c in self._checkpoints if c.turn == turn), None)
        return self._read(turn, found) if found is not None else self._replayed(turn, progress)

    def _unedited(self) -> Snapshot:
        linears = self.linears
        with WeightFiles(self.folder, self._skeleton) as files, closing(WeightReader(files)) as reader:
            if pretrained.fingerprint_of(reader.samples(self.dtype)) != self.state.base_fingerprint:
                raise ModelError(f"{self.base}: is not the model that {self.path} was made from; give that one with --model")
            weights = {name: reader.tensor(f"{name}.weight", self.dtype) for name in linears}
        return Snapshot(0, weights, weights)

    def _read(self, turn: int, state: Path) -> Snapshot:
        held = stored_weights(state)
        exact = held if self.dtype == torch.float32 else stored_weights(state, exact=True)
        return Snapshot(turn, *({name: weights[name] for name in self.modules} for weights in (held, exact)))

    def _replayed(self, turn: int, progress: Progress) -> Snapshot:
        with tempfile.TemporaryDirectory(prefix=f".{self.path.name}.replay-", dir=self.path.resolve().parent) as folder:
            copy = Path(folder) / self.path.name
            copy.mkdir()
            for name in (*sorted(JOURNAL), RUN):
                if (self.path / name).is_dir():
                    shutil.copytree(self.path / name, copy / name)
                elif (self.path / name).is_file():
                    shutil.copyfile(self.path / name, copy / name)
            quiet = {"output": str(copy), "tracking_uri": "none", "eval": False, "save": "delta", "overwrite": False}
            config = RunConfig.build({**self.options, **quiet})
            with closing(Coordinator(config, make_worker(config), make_tracker("none", config.experiment), progress)) as coordinator:
                roll_back(coordinator, turn)
            newest = Checkpoints(copy / "checkpoints").all()[-1]
            return self._read(turn, newest.path / STATE)


def check_modules(name: str, skeleton: nn.Module, modules: list[str]) -> None:
    """Refuse weights that no export could change alone.

    Args:
        name: What to call the model in messages.
        skeleton: The model, without its weights.
        modules: Names of the edited modules.

    Raises:
        ModelError: A module is no linear, or shares its weight with another.
    """
    known, owners = dict(skeleton.named_modules()), dict(skeleton.named_parameters(remove_duplicate=False))
    for module in modules:
        if module not in known:
            raise ModelError(f"{name}: has no {module}, so it is not the model that this run was made from; give that one with --model")
        if not is_linear(known[module]):
            raise ModelError(f"{name}: {module} is a {type(known[module]).__name__}, expected a Linear or Conv1D; this run cannot be exported")
        weight = owners[f"{module}.weight"]
        if others := [other for other, value in owners.items() if value is weight and other != f"{module}.weight"]:
            raise ModelError(f"{name}: the weight of {module} is also {others[0]}, so it cannot be changed alone; this run cannot be exported")
