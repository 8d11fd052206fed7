"""How an editor edits: its configuration, and where the settings come from that nobody gave."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from editing.errors import InputError
from editing.method.shift import SolveForm
from editing.model.decoder import Decoder
from editing.model.modules import describe_editable
from editing.model.tokenization import DEFAULT_BATCH_TOKENS
from editing.options import MethodOptions, check_choice, check_number, check_whole
from editing.presets import find_preset


@dataclass(frozen=True, kw_only=True)
class EditorConfig(MethodOptions):
    """How edits are made: the method's own options, and these.

    Attributes:
        modules: Names or patterns of the linears to edit, at the answers.
        learning_rate: Scale of the targets.
        edits_per_turn: Edits that share one shift per module.
        group_size: Edits over whose answer tokens the loss is averaged.
        solve: Which linear system is solved; ``auto`` takes the smaller. A module whose keys are sliced over shards is
            always solved in the row form, for which no shard needs a whole key.
        masters: Keep float32 copies of edited modules whose weights are of lower precision.
        batch_tokens: Padded tokens in one physical batch; changes speed and memory, not results.
        cache_prefix: Run the layers below the lowest edited one apart, for many turns at once.
        preset: Name of the preset from which comes what was not given; for the record.
    """

    modules: tuple[str, ...]
    learning_rate: float
    edits_per_turn: int = 100
    group_size: int = 10
    solve: SolveForm = "auto"
    masters: bool = True
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    cache_prefix: bool = True
    preset: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("learning_rate", self.learning_rate)
        for name in ("edits_per_turn", "group_size", "batch_tokens"):
            check_whole(name, getattr(self, name))
        check_choice("solve", self.solve, get_args(SolveForm))


def settings(
    decoder: Decoder,
    name: str | Path,
    *,
    modules: Sequence[str] | None = None,
    learning_rate: float | None = None,
    preset: str | None = None,
    dataset: str | None = None,
) -> tuple[tuple[str, ...], float, dict[str, Any]]:
    """Patterns of the modules to edit and the learning rate, as given or else the preset's, and the preset's further options.

    Raises:
        InputError: Something is not given and there is no preset for the model.
    """
    options: dict[str, Any] = {}
    if modules is None or learning_rate is None or preset is not None:
        found = find_preset(decoder.config, type(decoder.model).__name__, preset, dataset=dataset)
        if found is None:
            known = f"no preset {preset!r} knows" if preset else "no preset knows"
            raise InputError(f"{name}: {known} this model: give modules and a learning rate; it could edit {describe_editable(decoder)}")
        modules = found.modules if modules is None else modules
        learning_rate = found.learning_rate if learning_rate is None else learning_rate
        options = {**found.options, "preset": found.full_name}
    return tuple(modules), learning_rate, options
