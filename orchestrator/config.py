"""The configuration of a run: one frozen record, from defaults, a YAML file and command-line flags, in this order."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from editing.datasets import FORMATS
from editing.errors import InputError
from editing.modules import split_patterns
from editing.normalizer import MomentRule
from editing.presets import find_preset
from editing.pretrained import DTypeName
from workers.worker import WorkerSpec

FormatName = Literal["auto", "jsonl", "ultraeditbench", "zsre", "counterfact"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's result, and where it goes.

    Attributes:
        model: Folder or Hub id of the model to edit.
        edits: File with the edits, or folder of parts.
        output: Folder for the results; made by the run.
        format: Record format of ``edits``.
        limit: Use the first N usable records only.
        preset: Name of a preset; by default the model's own.
        modules: Names or patterns of the modules to edit; by default the preset's.
        learning_rate: Scale of the targets; by default the preset's.
        edits_per_turn: Edits that share one shift per module.
        group_size: Edits over whose answer tokens the loss is averaged.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        lookahead: Coming turns that go through the frozen layers in one pass.
        moments: Rule of the lifelong moments.
        batch_tokens: Padded tokens in one physical batch.
        tracking_uri: MLflow tracking URI, or ``none``.
        experiment: MLflow experiment.
        eval: Evaluate all edits at the end.
        generate: Edits for which text is generated before and after; a seeded sample.
        seed: Seed of the samples.
        checkpoint_every: Turns between two checkpoints; 0 writes one at the end only.
        keep: Newest checkpoints that are kept.
        strict: Stop at the first bad record instead of setting it aside.
        overwrite: Replace an earlier run in ``output``.
    """

    model: str
    edits: str
    output: str
    format: FormatName = "auto"
    limit: int | None = None
    preset: str | None = None
    modules: tuple[str, ...] | None = None
    learning_rate: float | None = None
    edits_per_turn: int = 100
    group_size: int = 10
    device: str = "auto"
    dtype: DTypeName = "auto"
    lookahead: int = 4
    moments: MomentRule = "published"
    batch_tokens: int = 2048
    tracking_uri: str = "sqlite:///mlflow.db"
    experiment: str = "ultraedit"
    eval: bool = True
    generate: int = 50
    seed: int = 0
    checkpoint_every: int = 10
    keep: int = 2
    strict: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("limit", "lookahead", "edits_per_turn", "group_size", "batch_tokens", "keep"):
            value = getattr(self, name)
            if not (name == "limit" and value is None) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name}: expected a whole number of at least 1, found {value!r}")
        for name in ("generate", "seed", "checkpoint_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"{name}: expected a whole number of at least 0, found {value!r}")
        rate = self.learning_rate
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < float("inf")):
            raise InputError(f"learning_rate: expected a finite number above 0, found {rate!r}")
        for name, allowed in (("format", ("auto", *FORMATS)), ("moments", ("published", "exact")), ("dtype", ("auto", "float32", "bfloat16"))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}: expected one of {', '.join(allowed)}, found {getattr(self, name)!r}")
        for name in ("eval", "strict", "overwrite"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}: expected true or false, found {getattr(self, name)!r}")
        for name in ("model", "edits", "output", "device", "tracking_uri", "experiment"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputError(f"{name}: expected a text, found {getattr(self, name)!r}")
        if self.modules is not None and not (self.modules and all(isinstance(pattern, str) for pattern in self.modules)):
            raise InputError(f"modules: expected names of modules, found {list(self.modules)!r}")
        if self.preset is not None:
            find_preset(None, "", str(self.preset))  # an unknown one is an error before a model is loaded

    @classmethod
    def build(cls, flags: dict[str, Any], file: Path | None = None) -> "RunConfig":
        """Merge a YAML file and command-line flags over the defaults; flags win, ``None`` means not given.

        Raises:
            InputError: A key is unknown, a required one is missing, or a value is not usable.
        """
        given = {k: v for k, v in flags.items() if v is not None}
        values = {**(_read_yaml(file) if file else {}), **given}
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise InputError(f"{file}: unknown key {key!r}; expected some of {', '.join(sorted(known))}")
        for key in ("model", "edits", "output"):
            if key not in values:
                raise InputError(f"{key}: missing; give --{key}" + (f" or set it in {file}" if file else ""))
        if values.get("modules") is not None:
            values["modules"] = _patterns(values["modules"])
        try:
            return cls(**values)
        except InputError as error:
            key = str(error).partition(":")[0]
            raise InputError(f"{file}: {error}") if file and key not in given else error from None

    def worker_spec(self) -> WorkerSpec:
        """The worker's share of this configuration."""
        options = {name: getattr(self, name) for name in ("edits_per_turn", "group_size", "moments", "batch_tokens")}
        return WorkerSpec(
            model=self.model,
            device=self.device,
            dtype=self.dtype,
            preset=self.preset,
            modules=self.modules,
            learning_rate=self.learning_rate,
            options=options,
            seed=self.seed,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``run.json`` and the tracker."""
        return asdict(self)


def _patterns(value: Any) -> tuple[Any, ...]:
    return tuple(split_patterns(value) if isinstance(value, str) else value if isinstance(value, (list, tuple)) else (value,))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a YAML configuration") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a YAML configuration") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(loaded, dict):
        found = "nothing" if loaded is None else type(loaded).__name__
        raise InputError(f"{path}: expected keys and values like 'edits_per_turn: 50', found {found}")
    values = {str(key).replace("-", "_"): value for key, value in loaded.items()}
    if isinstance(values.get("learning_rate"), str):  # YAML 1.1 reads 1e-6, without a dot, as a text
        try:
            values["learning_rate"] = float(values["learning_rate"])
        except ValueError:
            raise InputError(f"{path}: learning_rate: expected a number, found {values['learning_rate']!r}") from None
    return values
