"""Modules and learning rate for models that someone has measured: one YAML file a model, with its source."""

from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml

from editing.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What to edit in one model.

    Attributes:
        name: Name for ``--preset``.
        modules: Patterns of the edited linears.
        learning_rate: Scale of the targets.
        source: Where the values come from.
        match: Fields of the model's text configuration, and ``architectures``, that select this preset by default.
    """

    name: str
    modules: tuple[str, ...]
    learning_rate: float
    source: str
    match: dict[str, Any] = field(default_factory=dict)

    def fits(self, config: Any, architecture: str) -> bool:
        """Whether this is the default for a model of this configuration and class."""
        wanted = dict(self.match)
        architectures = wanted.pop("architectures", None)
        return (
            bool(self.match)
            and (architectures is None or architecture in architectures)
            and all(getattr(config, k, None) == v for k, v in wanted.items())
        )


def all_presets() -> dict[str, Preset]:
    """Every shipped preset by name."""
    files = sorted((f for f in resources.files(__name__).iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    presets = (Preset(**{**yaml.safe_load(f.read_text()), "name": f.name.removesuffix(".yaml")}) for f in files)
    return {p.name: p for p in presets}


def find_preset(config: Any, architecture: str, name: str | None = None) -> Preset | None:
    """The preset of this name, or the one that fits the model; ``None`` if none does.

    Raises:
        InputError: There is no preset of this name.
    """
    presets = all_presets()
    if name is None:
        return next((p for p in presets.values() if p.fits(config, architecture)), None)
    if name not in presets:
        raise InputError(f"preset: there is none named {name!r}; there are {', '.join(presets)}")
    return presets[name]
