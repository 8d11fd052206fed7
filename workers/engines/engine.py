"""What an engine does for a worker: it holds the model, or this process's shard of it. How it does that is all that engines differ in."""

from pathlib import Path
from typing import Protocol

from editing import Editor
from editing.memory.calibration import USUAL_LOOKAHEAD
from workers.protocol import USUAL_EVALUATION, WorkerSpec


class Engine(Protocol):
    """One copy of a model, or this process's shard of it."""

    @property
    def lookahead(self) -> int:
        """Turns that best go through the prefix in one pass."""
        ...

    @property
    def edits_at_a_time(self) -> int:
        """Edits that are best evaluated in one call."""
        ...

    def outlook(self, num_edits: int | None) -> list[str]:
        """What loading will do, for so many edits if that is known; a line each. Raises as :meth:`workers.protocol.Worker.outlook` does."""
        ...

    def load(self) -> Editor:
        """Load the model and get it ready to be edited."""
        ...

    def num_parameters(self) -> int:
        """Parameters of the whole model, tied ones counted once."""
        ...

    def fingerprint(self) -> str:
        """Tells this base model from others, however it is held; to be asked before the first edit."""
        ...

    def saved_size(self) -> int:
        """Bytes that :meth:`save` writes, nearly."""
        ...

    def save(self, folder: Path) -> None:
        """Write the edited model, whole."""
        ...

    def close(self) -> None:
        """Close what :meth:`load` opened, however far it came. The model is freed with the engine."""
        ...


class InMemoryEngine(Engine):
    """An engine whose weights are all in memory: there is nothing to forecast, and no pass costs more than another."""

    _spec: WorkerSpec

    @property
    def lookahead(self) -> int:
        return self._spec.lookahead or USUAL_LOOKAHEAD

    @property
    def edits_at_a_time(self) -> int:
        return USUAL_EVALUATION

    def outlook(self, num_edits: int | None) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing is open."""
