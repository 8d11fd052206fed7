"""Which files of a folder are the model: those that transformers would load, on every path (whole, streamed, sharded, apply).

    transformers_weights (named in config.json)  |  model.safetensors  |  model.safetensors.index.json and its parts

Whatever else lies beside them, such as ``consolidated.safetensors``, is not the model, and is neither read, copied nor downloaded.
"""

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from editing.errors import ModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

ADAPTER = "adapter_model.safetensors"

COMPANIONS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*", "USE_POLICY*", "Notice*")
"""Files of a repository that a model needs beside its weights, or that its licence wants to go with it."""

_PICKLED = (".bin", ".pt", ".pth", ".ckpt")

Stamp = tuple[int, int, int, int]


def index_of(folder: Path) -> Path | None:
    """The index that names a model's parts; ``None`` for a model in one file.

    Raises:
        ModelError: ``config.json`` names weights that are none.
    """
    named = _named_by_config(folder)
    if named is not None:
        return folder / named if named.endswith(".index.json") else None
    return folder / INDEX if not (folder / SINGLE).is_file() and (folder / INDEX).is_file() else None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a folder's model.

    Raises:
        ModelError: The index is damaged, or there are no weights that transformers would load.
    """
    index = index_of(folder)
    if index is not None:
        return [folder / name for name in _parts(index)]
    single = folder / (_named_by_config(folder) or SINGLE)
    if not single.is_file():
        raise ModelError(f"{folder}: has no {single.name} and no {INDEX}{_found_instead(folder)}")
    return [single]


def download(name: str) -> Path:
    """The folder of a repository of the Hugging Face Hub, with its model and what goes with it, and nothing else.

    Raises:
        ModelError: Its index is damaged.
    """
    folder = Path(snapshot_download(name, allow_patterns=[*COMPANIONS, SINGLE, ADAPTER], ignore_patterns=["*/*"]))
    if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
        return folder  # which is merged into its base
    index = index_of(folder)
    parts = _parts(index) if index is not None else [_named_by_config(folder) or SINGLE]
    snapshot_download(name, allow_patterns=[*parts, "additional_chat_templates/*"])
    return folder


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """The files of an unedited model, as they were when it was loaded; an edited copy is made of them at the end of a run.

    Attributes:
        folder: Folder of the model.
        stamps: Inode, device, size and time of change of each of its weight files.
    """

    folder: Path
    stamps: dict[Path, Stamp]

    @classmethod
    def of(cls, folder: Path) -> "BaseFiles":
        """As they are now."""
        return cls(folder, {path: stamp_of(path.stat()) for path in weight_files(folder)})

    @classmethod
    def of_model(cls, model: Any) -> "BaseFiles | None":
        """Those that a model was loaded from, or ``None`` if it comes from no folder of safetensors files."""
        folder = Path(getattr(model, "name_or_path", ""))
        try:
            return cls.of(folder) if (folder / "config.json").is_file() else None
        except ModelError:
            return None

    def check_in_place(self) -> None:
        """See that the files are still those that were loaded.

        Raises:
            ModelError: One is not.
        """
        for path, stamp in self.stamps.items():
            if not path.is_file() or stamp_of(path.stat()) != stamp:
                raise ModelError(
                    f"{path}: has been replaced or changed since the run began, so no edited copy can be made of it; restore it, then --resume"
                )


def convert_command(folder: Path, stem: str) -> str:
    """A command that writes a folder's pickle files ``STEM*.bin`` as ``safetensors``; of pickles it takes tensors alone, and runs nothing."""
    output = {"pytorch_model": SINGLE, "adapter_model": ADAPTER}[stem]
    code = (
        "import sys, torch, pathlib, safetensors.torch as s; p = pathlib.Path(sys.argv[1]); "
        f'w = {{k: v.clone().contiguous() for f in sorted(p.glob("{stem}*.bin")) '
        'for k, v in torch.load(f, map_location="cpu", weights_only=True).items()}; '
        f's.save_file(w, p / "{output}", {{"format": "pt"}})'
    )
    return f"python -c {shlex.quote(code)} {shlex.quote(str(folder))}"


def stamp_of(status: os.stat_result) -> Stamp:
    """Tells a file from another, and from itself after a change."""
    return status.st_ino, status.st_dev, status.st_size, status.st_mtime_ns


def _parts(index: Path) -> list[str]:
    names = _read(index, lambda found: sorted({str(name) for name in found["weight_map"].values()}))
    if not names:
        raise ModelError(f"{index}: names no weights")
    return [_inside(index, name) for name in names]


def _named_by_config(folder: Path) -> str | None:
    """A file that ``config.json`` names as the weights, which transformers takes before any other."""
    config = folder / "config.json"
    named = _read(config, lambda found: found.get("transformers_weights")) if config.is_file() else None
    return None if named is None else _inside(config, str(named))


def _inside(path: Path, name: str) -> str:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ModelError(f"{path}: names the weights {name!r}; expected a file inside the model's folder")
    return name


def _read(path: Path, choose: Callable[[Any], Any]) -> Any:
    try:
        return choose(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        kind = "a safetensors index" if path.name.endswith(".index.json") else "a model's configuration"
        raise ModelError(f"{path}: is not {kind} ({type(error).__name__})") from None


def _found_instead(folder: Path) -> str:
    others = sorted(f.name for f in folder.glob("*.safetensors"))
    if others:
        return f"; it holds {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}, which transformers does not load"
    if any(folder.glob("pytorch_model*.bin")):
        return f", so no safetensors weights; its pickle files are not opened, convert them with: {convert_command(folder, 'pytorch_model')}"
    if any(f.suffix in _PICKLED for f in folder.iterdir()):
        return ", so no safetensors weights; its pickle files are not opened, convert them first"
    return ", so no safetensors weights"
