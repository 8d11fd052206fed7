"""Settings for models that someone has measured: one YAML file per model, with its source.

The settings at the top of a file are those of the published method. A file may have variants, which give only what differs:

    modules: [...]            learning_rate: 1.5e-4       source: ...       match: {...}
    variants:
      refined: {passes: 3, learning_rate: 5e-5, source: ...}
      fever: {modules: [...]}
    default: refined

A file may also say its ``format_version``, as the shipped ones and those of ``ultraedit tune`` do.
A variant with the name of an edit file's format is for that data set, and is chosen for such a file without being named. Names of
modules begin at the list of decoder layers, ``layers.3.mlp.up_proj``, whatever the model calls that list
(:mod:`editing.model.modules`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from editing.config import MethodOptions, check_number
from editing.errors import InputError
from editing.files.format_version import KEY, Format

PUBLISHED = "published"

FORMAT = Format("preset", 1)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Which modules of a model to edit, and how.

    Attributes:
        name: Name for ``--preset``.
        variant: Name of the variant among the model's presets; also accepted by ``--preset``.
        modules: Patterns of the edited linears.
        learning_rate: Scale of the targets.
        source: Where the values come from.
        note: Other models with the same configuration.
        match: Fields of the model's text configuration, and ``architectures``, that select this preset by default.
        options: Options of the method that differ from the published ones.
    """

    name: str
    variant: str
    modules: tuple[str, ...]
    learning_rate: float
    source: str
    note: str = ""
    match: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        """Name with the variant."""
        return self.name if "/" in self.name else f"{self.name}/{self.variant}"

    def fits(self, config: Any, architecture: str) -> bool:
        """Whether the preset is for models of a configuration and class."""
        required = dict(self.match)
        architectures = required.pop("architectures", None)
        return (
            bool(self.match)
            and (architectures is None or architecture in architectures)
            and all(getattr(config, k, None) == v for k, v in required.items())
        )


def all_presets() -> dict[str, Preset]:
    """All shipped presets by name: a model's default under the model's name, and each variant as ``MODEL/VARIANT``."""
    files = sorted((f for f in resources.files(__name__).iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {preset.name: preset for f in files for preset in _read(f.name.removesuffix(".yaml"), yaml.safe_load(f.read_text()))}


def _read(model: str, values: dict[str, Any]) -> Iterator[Preset]:
    values = {key: value for key, value in values.items() if key != KEY}
    variants = {PUBLISHED: {}, **values.pop("variants", {})}
    default = values.pop("default", PUBLISHED)
    for name, variant in ((model, default), *((f"{model}/{variant}", variant) for variant in variants)):
        merged = {**values, **variants[variant]}
        options = {key: merged.pop(key) for key in MethodOptions.names() if key in merged}
        yield Preset(**{**merged, "name": name, "variant": variant, "options": options, "modules": tuple(merged["modules"])})


def read_preset(path: Path) -> Preset:
    """The default preset of a YAML file, for any model.

    Raises:
        InputError: The file cannot be read, is not a preset, or is of a newer format version.
    """
    values = _load(path)
    FORMAT.version_of(values, f"preset: {path}")
    try:
        found = next(_read(str(path), values))
        if not (isinstance(values["modules"], list) and found.modules and all(isinstance(name, str) for name in found.modules)):
            raise InputError(f"modules: expected a list of names, found {values['modules']!r}")
        check_number("learning_rate", found.learning_rate)
        MethodOptions(**found.options)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"preset: {path}: {' '.join(str(error).split())}; {_EXPECTED}") from None
    except InputError as error:
        raise InputError(f"preset: {path}: {error}") from None
    return found


_EXPECTED = "expected a preset with modules, learning_rate and source"


def _load(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"preset: {path}: cannot be read ({error.strerror}); {_EXPECTED}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"preset: {path}: {' '.join(str(error).split())}; {_EXPECTED}") from None
    if not isinstance(values, dict):
        raise InputError(f"preset: {path}: {_EXPECTED}, found {'nothing' if values is None else type(values).__name__}")
    return values


def is_preset_file(name: str) -> bool:
    """Whether a preset is named by its file."""
    return name.endswith((".yaml", ".yml"))


def find_preset(config: Any, architecture: str, name: str | None = None, *, dataset: str | None = None) -> Preset | None:
    """The preset of this name, or the one that fits the model; ``None`` if none does.

    Args:
        config: The model's text configuration.
        architecture: The model's class.
        name: A preset, a variant of a preset that fits the model, or a YAML file; by default the model's default.
        dataset: Name of a variant to use if no variant is named; ignored if the model has no such variant.

    Raises:
        InputError: There is no preset, variant or file of this name, or the file is not a preset.
    """
    if name is not None and is_preset_file(name):
        return read_preset(Path(name))
    presets = all_presets()
    variants = sorted({preset.variant for preset in presets.values()})
    if name is not None and name not in presets and name not in variants:
        raise InputError(f"preset: found none named {name!r}; expected one of {', '.join([*presets, *variants])}, or a YAML file")
    if name not in presets:
        fitting = [preset for preset in presets.values() if preset.fits(config, architecture)]
        name = next((preset.name if name is None else preset.full_name for preset in fitting if name in (None, preset.variant)), "")
    return presets.get(f"{name}/{dataset}") or presets.get(name)
