"""A delta: the edited weights alone, with what tells their base model from others.

    delta/edited.safetensors    whole weights of the edited modules, by their parameters' names
    delta/delta.json            the base: its name, its fingerprint, the precision in which it was edited

A delta of a 7B model with two edited modules has 235 MB. Applied to its base it gives the edited model, bit for bit.
"""

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editing.atomic import whole_folder
from editing.errors import InputError, ModelError
from editing.files import pretrained
from editing.files.format_version import Format
from editing.files.model_name import lost_folder
from editing.files.reader import WeightReader
from editing.files.saving import save_edited
from editing.files.weights import WeightFiles

WEIGHTS, ABOUT = "edited.safetensors", "delta.json"

FORMAT = Format("delta", 2)
"""Version 1 may name the base by a relative path."""


def write_delta(folder: Path, weights: Mapping[str, Tensor], *, base: str, fingerprint: str, dtype: str) -> None:
    """Write a delta.

    Args:
        folder: Where it goes; made if missing.
        weights: Edited modules' weights by module name, whole.
        base: Folder, as an absolute path, or Hub id of the base model.
        fingerprint: Of the base model, as held in ``dtype``.
        dtype: Precision in which the base was edited: ``float32`` or ``bfloat16``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        save_file({f"{name}.weight": weight.contiguous() for name, weight in weights.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise InputError(f"{folder}: the edited weights could not be written ({error})") from None
    about = {**FORMAT.tag, "base": base, "base_fingerprint": fingerprint, "dtype": dtype, "modules": list(weights)}
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def apply_delta(folder: Path, output: Path, *, base: str | None = None) -> str:
    """Write the model that a delta makes of its base; no more than the edited weights are in memory.

    Args:
        folder: The delta.
        output: Folder to make.
        base: Folder or Hub id of the base model; by default the one that the delta names.

    Returns:
        The base that was used.

    Raises:
        InputError: The delta is damaged or of a newer format version, ``output`` is there already, or the disk is full. Nothing was written.
        ModelError: The base is not there, cannot be read, or is another model.
    """
    about = _read_about(folder)
    name = base or _base_of(folder, about)
    if output.exists():
        raise InputError(f"{output}: is there already; give a folder that is not")
    source = pretrained.local_folder(name)
    dtype = torch.float32 if about["dtype"] == "float32" else torch.bfloat16
    skeleton = pretrained.make_skeleton(source, pretrained.load_config(source), dtype)
    with WeightFiles(source, skeleton) as files, closing(WeightReader(files)) as reader:
        if pretrained.fingerprint_of(reader.samples(dtype)) != about["base_fingerprint"]:
            raise ModelError(f"{name}: is not the model that {folder} was made from ({about['base']}); give that one with --base")
        with whole_folder(output) as partial:
            save_edited(source, _edited(folder, files), partial)
    return name


def _base_of(folder: Path, about: Mapping[str, Any]) -> str:
    """The base that a delta names.

    Raises:
        ModelError: It is a folder that is not there.
    """
    base = str(about["base"])
    lost = lost_folder(base, may_be_relative=FORMAT.version_of(about, folder / ABOUT) < 2)
    if lost is not None:
        raise ModelError(f"{folder}: was made from the model {base}, which was not found: there is no {lost}; give it with --base")
    return base


def _edited(folder: Path, files: WeightFiles) -> dict[str, Tensor]:
    """The delta's weights by their keys in the base's files."""
    found = {}
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                if files.shapes.get(name) != tuple(file.get_slice(name).get_shape()):
                    raise ModelError(f"{folder / WEIGHTS}: {name} is not a weight of the base model, or of another shape")
                found[files.key(name)] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder / WEIGHTS}: is damaged or no safetensors file ({error})") from None
    return found


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        FORMAT.version_of(about, folder / ABOUT)
        missing = [key for key in ("base", "base_fingerprint", "dtype") if not isinstance(about[key], str)]
    except OSError as error:
        raise InputError(f"{folder}: holds no delta: {ABOUT} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / ABOUT}: is damaged ({type(error).__name__}: {error})") from None
    if missing:
        raise InputError(f"{folder / ABOUT}: {missing[0]}: expected a non-empty string, found {about[missing[0]]!r}")
    return about
