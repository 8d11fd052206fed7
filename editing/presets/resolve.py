"""Where the settings come from that nobody gave: the preset for a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editing.errors import InputError
from editing.model.decoder import Decoder
from editing.model.modules import describe_editable
from editing.presets import PUBLISHED, find_preset


def resolve_settings(
    decoder: Decoder,
    name: str | Path,
    *,
    modules: Sequence[str] | None = None,
    learning_rate: float | None = None,
    preset: str | None = None,
    dataset: str | None = None,
) -> tuple[tuple[str, ...], float, dict[str, Any]]:
    """Patterns of the modules to edit and the learning rate, as given or else the preset's, and the preset's further options.

    Who asks for the published preset by name gets the published code's tokens too.

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
        tokens = {"join": PUBLISHED} if preset is not None and preset.split("/")[-1] == PUBLISHED else {}
        options = {**tokens, **found.options, "preset": found.full_name}
    return tuple(modules), learning_rate, options
