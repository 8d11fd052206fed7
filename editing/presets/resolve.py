"""Settings of a run: as given, and otherwise those of the model's preset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editing.config import RAW
from editing.errors import InputError
from editing.model.decoder import Decoder
from editing.model.modules import describe_editable
from editing.presets import PUBLISHED, find_preset, unmeasured


def resolve_settings(
    decoder: Decoder,
    name: str | Path,
    *,
    modules: Sequence[str] | None = None,
    learning_rate: float | None = None,
    preset: str | None = None,
    dataset: str | None = None,
) -> tuple[tuple[str, ...], float | None, dict[str, Any]]:
    """Modules and learning rate as given or else from the preset, and the preset's further options.

    A model that no preset fits gets settings without a scale (:mod:`editing.presets.unmeasured`).

    Args:
        decoder: The model.
        name: Name of the model, for messages.
        modules: Patterns of the modules to edit; ``None`` for the preset's.
        learning_rate: ``None`` for the preset's.
        preset: Name of a preset, variant or YAML file; ``None`` for the one that fits the model.
        dataset: As for :func:`editing.presets.find_preset`.

    Returns:
        Patterns of modules, learning rate, and further options by name; ``None`` for a learning rate that the first turn finds.

    Who asks for the published preset by name gets the published code's tokens too.

    Raises:
        InputError: The preset that is asked for does not fit the model, or no module is given and the model has none of a known kind.
    """
    options: dict[str, Any] = {}
    if modules is None or learning_rate is None or preset is not None:
        found = find_preset(decoder.config, type(decoder.model).__name__, preset, dataset=dataset)
        if found is None and preset is not None:
            known = describe_editable(decoder)
            raise InputError(f"{name}: no preset {preset!r} fits this model; give modules and a learning rate; modules that can be edited: {known}")
        if found is None:
            return _without_preset(decoder, name, modules, learning_rate)
        modules = found.modules if modules is None else modules
        learning_rate = found.learning_rate if learning_rate is None else learning_rate
        tokens = {"join": PUBLISHED, "framings": (RAW,), "answer_end": "none"} if preset is not None and preset.split("/")[-1] == PUBLISHED else {}
        options = {**tokens, **found.options, "preset": found.full_name}
    return tuple(modules), learning_rate, options


def _without_preset(
    decoder: Decoder, name: str | Path, modules: Sequence[str] | None, learning_rate: float | None
) -> tuple[tuple[str, ...], float | None, dict[str, Any]]:
    """As :func:`resolve_settings`, for a model that nobody has measured."""
    options: dict[str, Any] = {**unmeasured.OPTIONS, "preset": unmeasured.NAME}
    if learning_rate is None:
        options |= {"strength": unmeasured.STRENGTH, "strength_goal": unmeasured.GOAL}
    if modules is None:
        modules, at_subjects = unmeasured.modules_for(decoder)
        if at_subjects:
            options |= {"subject_modules": tuple(at_subjects), "subject_scale": unmeasured.SUBJECT_SCALE}
        if not modules:
            raise InputError(f"{name}: nothing is known of this kind of model; give modules; those that can be edited: {describe_editable(decoder)}")
    return tuple(modules), learning_rate, options
