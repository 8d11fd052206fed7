"""Settings of a run: as given, and otherwise those of the model's preset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editing.config import RAW
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
    """Modules and learning rate as given or else from the preset, and the preset's further options.

    Args:
        decoder: The model.
        name: Name of the model, for messages.
        modules: Patterns of the modules to edit; ``None`` for the preset's.
        learning_rate: ``None`` for the preset's.
        preset: Name of a preset, variant or YAML file; ``None`` for the one that fits the model.
        dataset: As for :func:`editing.presets.find_preset`.

    Returns:
        Patterns of modules, learning rate, and further options by name.

    Who asks for the published preset by name gets the published code's tokens too.

    Raises:
        InputError: Modules or learning rate are not given, and there is no preset for the model.
    """
    options: dict[str, Any] = {}
    if modules is None or learning_rate is None or preset is not None:
        found = find_preset(decoder.config, type(decoder.model).__name__, preset, dataset=dataset)
        if found is None:
            named = f"{preset!r} " if preset else ""
            known = describe_editable(decoder)
            raise InputError(f"{name}: no preset {named}fits this model; give modules and a learning rate; modules that can be edited: {known}")
        modules = found.modules if modules is None else modules
        learning_rate = found.learning_rate if learning_rate is None else learning_rate
        tokens = {"join": PUBLISHED, "framings": (RAW,)} if preset is not None and preset.split("/")[-1] == PUBLISHED else {}
        options = {**tokens, **found.options, "preset": found.full_name}
    return tuple(modules), learning_rate, options
