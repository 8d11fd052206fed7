"""The configuration of a run: one frozen record, from defaults, a YAML file and command-line flags, in this order."""

import logging
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from editing.config import (
    HELD_OUT,
    NONE,
    AnswerEnd,
    Join,
    MethodOptions,
    MomentRule,
    PrefixDType,
    PreserveForm,
    SubjectTargets,
    check_choice,
    check_number,
    check_whole,
)
from editing.datasets import FORMATS, EditFile
from editing.errors import InputError
from editing.files.pretrained import DTypeName
from editing.memory.budget import parse_size
from editing.model.framing import check_framings, expanded
from editing.model.modules import split_patterns
from editing.monitoring.held_out import read_passages
from editing.presets import find_preset
from editing.reference_text import read_text
from orchestrator.run.governor import Limits
from orchestrator.run.places import PLACES, absolute
from workers.protocol import WorkerSpec

logger = logging.getLogger("ultraedit")

OnCollapse = Literal["warn", "stop", "rollback"]
Save = Literal["full", "delta", "peft"]
FormatName = Literal[
    "auto",
    "rippleedits",
    "bizsre",
    "bizsre-zh",
    "mquake",
    "cknowedit",
    "knowedit",
    "counterfact",
    "mlake",
    "unke",
    "wikibigedit",
    "fever",
    "ultraeditbench",
    "zsre",
    "qaedit",
    "jsonl",
]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's result, and where it goes.

    Attributes:
        model: Folder or Hub id of the model to edit.
        edits: File with the edits, or folder of parts.
        output: Folder for the results; made by the run.
        format: Record format of ``edits``.
        limit: Use only the first N usable edits.
        preset: Name of a preset, or of a variant of the model's own; by default the model's own.
        dataset: Data set whose modules a preset gives, where it has others for some; by default inferred from the edits.
        modules: Names or patterns of the modules to edit; by default those of the preset.
        learning_rate: Scale of the targets; by default the preset's.
        edits_per_turn: Edits that share one shift per module.
        group_size: Edits over whose answer tokens the loss is averaged.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        device_memory: Memory that may be used, as ``6GiB``, or ``auto`` for what is free; by default the whole model is in memory.
        lookahead: Turns that go through the frozen layers in one pass; by default 4, or as many as suit the memory budget.
        strength: In place of a learning rate: how far the first turn shifts the weights, as a share of their norm; by default none.
        strength_goal: Share of the first turn's questions that are to be answered right, up to which the strength is raised; by default 0.7
            where neither a preset nor a rate nor a strength is given, else 0.
        moments: Rule of the lifelong moments; by default the preset's, else ``published``.
        ridge: Strength of the ridge in the solve; by default the preset's, else 1.
        passes: Most shifts of one turn; by default the preset's, else 1.
        margin: Nats by which an answer must lead for its row to need no further pass; by default the preset's, else 0.
        small_turns: Make turns of few edits hold: usual scales from shipped statements, more passes; by default the preset's, else not.
        preserve: Form of the ridge that holds back change on the keys of all tokens seen; by default the preset's, else ``off``.
        preserve_weight: Its weight; by default the preset's, else 1000.
        preserve_rank: Directions of its sketch; by default the preset's, else 256.
        preserve_text: Text that it holds as well: ``none``, ``everyday`` or a file; by default the preset's, else ``none``.
        preserve_framed: Hold it also as what is asked in the framings; by default the preset's, else it is.
        preserve_neighbours: Hold each edit's prompt about so many other subjects too; by default the preset's, else none.
        preserve_alike: Choose subjects that are most alike the edit's own; by default the preset's, else any.
        preserve_outputs: From 0 to below 1: hold back more what the text's predictions depend on, and less the rest; by default the preset's, else 0.
        whiten: Whiten value gradients as a whole; by default the preset's, else not.
        subject_modules: Names or patterns of the modules to edit at the subjects, or ``none``; by default the preset's, else none.
        find_subjects: Find the subject of an edit that comes without one in its prompt; by default the preset's, else not.
        subject_scale: Scale of their targets, as a multiple of the learning rate; by default the preset's, else 0.1.
        subject_targets: Where these targets come from, ``gradient`` or ``solved``; by default the preset's, else ``gradient``.
        subject_steps: Most steps in which a target is solved; by default the preset's, else 10.
        subject_margin: Lead of an answer, in nats, at which its target is solved; by default the preset's, else 1.
        subject_bound: Largest norm of a solved target, as a share of the module's outputs; by default the preset's, else 1.
        subject_contexts: Sentences before the prompt as further forms of an edit; by default the preset's, else none.
        subject_weight: Weight of the preserving ridge where targets are solved; by default the preset's, else 5000.
        join: How a prompt and its answer meet; by default ``published`` where that preset is asked for, else ``raw``.
        framings: The ways in which each edit is written; by default the preset's, else ``raw``, and ``chat`` where the model has a template.
            Files of framings are read here, and their definitions kept.
        answer_end: Where an edit writes what ends its answer too: ``none``, ``chat`` or ``stop``; by default the preset's, else ``chat``.
        prefix_dtype: Precision of products in frozen layers while editing, ``same`` or ``bfloat16``; by default the preset's, else ``same``.
        warm_up: Feed the moments with the first N edits before the first of them is made.
        batch_tokens: Padded tokens in one physical batch.
        save: ``full`` for the edited model, or ``delta`` for the edited weights alone, which ``ultraedit apply`` adds to the base,
            or ``peft`` for a LoRA adapter.
        tracking_uri: MLflow tracking URI, or ``none``.
        experiment: MLflow experiment.
        eval: Evaluate edits at the end.
        eval_sample: Evaluate a seeded sample of N edits instead of all.
        eval_at: Numbers of requested edits at which to evaluate as well.
        watch_every: Turns between two measurements of the model's health; the first and the last turn are always measured.
        on_collapse: What to do when a limit is passed: warn and go on, stop, or stop and roll back to the last healthy turn.
        max_weight_growth: Limit on the growth of an edited weight's norm, as a share of the unedited one's.
        min_probe_retention: Limit on the share of fixed probes that keep the unedited model's answer.
        max_perplexity_growth: Limit on the perplexity of the fixed text, as a multiple of the unedited model's.
        generate: Size of the seeded sample of edits for which text is generated, before and after.
        perplexity_text: Text whose perplexity is measured at the end: ``held-out``, which ships with the project, ``none`` or a file.
        seed: Seed of the samples, and of FEVER's choice among equivalent prompts.
        shards: Actors that one copy of the model is cut into.
        replicas: Copies of the model, each capturing a share of every turn.
        ray_address: ``local``, ``auto`` or ``ray://HOST:PORT``; by default ``auto`` within a Ray job, else ``local``.
        resources_per_shard: What one shard needs, as ``gpu=1,cpu=4``; by default one GPU where there are GPUs, else one CPU.
        placement_timeout: Seconds to wait for a cluster that scales up.
        worker_timeout: Seconds after which a worker that does not answer counts as lost.
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
    dataset: str | None = None
    modules: tuple[str, ...] | None = None
    learning_rate: float | None = None
    strength: float | None = None
    strength_goal: float | None = None
    edits_per_turn: int = 100
    group_size: int = 10
    device: str = "auto"
    dtype: DTypeName = "auto"
    device_memory: str | None = None
    lookahead: int | None = None
    moments: MomentRule | None = None
    small_turns: bool | None = None
    ridge: float | None = None
    passes: int | None = None
    margin: float | None = None
    preserve: PreserveForm | None = None
    preserve_weight: float | None = None
    preserve_rank: int | None = None
    preserve_text: str | None = None
    preserve_framed: bool | None = None
    preserve_neighbours: int | None = None
    preserve_alike: bool | None = None
    preserve_outputs: float | None = None
    whiten: bool | None = None
    subject_modules: tuple[str, ...] | None = None
    find_subjects: bool | None = None
    subject_scale: float | None = None
    subject_targets: SubjectTargets | None = None
    subject_steps: int | None = None
    subject_margin: float | None = None
    subject_bound: float | None = None
    subject_contexts: int | None = None
    subject_weight: float | None = None
    join: Join | None = None
    framings: tuple[str, ...] | None = None
    answer_end: AnswerEnd | None = None
    prefix_dtype: PrefixDType | None = None
    warm_up: int = 0
    batch_tokens: int = 2048
    save: Save = "full"
    tracking_uri: str = "sqlite:///mlflow.db"
    experiment: str = "ultraedit"
    eval: bool = True
    eval_sample: int | None = None
    eval_at: tuple[int, ...] = ()
    watch_every: int = 10
    on_collapse: OnCollapse = "warn"
    max_weight_growth: float = Limits.weight_growth
    min_probe_retention: float = Limits.probe_retention
    max_perplexity_growth: float = Limits.perplexity_growth
    generate: int = 50
    perplexity_text: str = HELD_OUT
    seed: int = 0
    shards: int = 1
    replicas: int = 1
    ray_address: str | None = None
    resources_per_shard: str | None = None
    placement_timeout: float = 0.0
    worker_timeout: float = 1800.0
    checkpoint_every: int = 10
    keep: int = 2
    strict: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in (
            "limit",
            "lookahead",
            "edits_per_turn",
            "group_size",
            "batch_tokens",
            "keep",
            "eval_sample",
            "watch_every",
            "shards",
            "replicas",
        ):
            if getattr(self, name) is not None or name not in ("limit", "eval_sample", "lookahead"):
                check_whole(name, getattr(self, name), at_least=1)
        for name in ("generate", "seed", "checkpoint_every", "warm_up"):
            check_whole(name, getattr(self, name), at_least=0)
        for number in self.eval_at if isinstance(self.eval_at, (tuple, list)) else (self.eval_at,):
            check_whole("eval_at", number, at_least=1)
        for name in ("learning_rate", "max_weight_growth", "min_probe_retention", "max_perplexity_growth", "placement_timeout", "worker_timeout"):
            if getattr(self, name) is not None or name != "learning_rate":
                check_number(name, getattr(self, name), or_zero=name != "learning_rate")
        method = MethodOptions(**self.method)
        read_text(method.preserve_text)
        read_passages(self.perplexity_text)
        check_framings(method.framings)
        choices = {"format": ("auto", *FORMATS), "dtype": get_args(DTypeName), "on_collapse": get_args(OnCollapse), "save": get_args(Save)}
        choices |= {} if self.dataset is None else {"dataset": tuple(FORMATS)}
        for name, allowed in choices.items():
            check_choice(name, getattr(self, name), allowed)
        for name in ("eval", "strict", "overwrite"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}: expected true or false, found {getattr(self, name)!r}")
        for name in ("model", "edits", "output", "device", "tracking_uri", "experiment"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputError(f"{name}: expected a non-empty string, found {getattr(self, name)!r}")
        if self.modules is not None and not (self.modules and all(isinstance(pattern, str) for pattern in self.modules)):
            raise InputError(f"modules: expected names or patterns of modules, found {list(self.modules)!r}")
        self.resources()
        if self.device_memory is not None:
            parse_size(str(self.device_memory))
            if self.is_distributed:
                raise InputError(f"device_memory: is for one worker, found --shards {self.shards} --replicas {self.replicas}; give one or the other")
        if self.preset is not None:
            find_preset(None, "", str(self.preset))  # so that an unknown one is an error before a model is loaded

    @classmethod
    def build(cls, flags: dict[str, Any], file: Path | None = None) -> "RunConfig":
        """Merge a YAML file and command-line flags over the defaults; flags win, ``None`` means not given. Paths become absolute.

        Raises:
            InputError: A key is unknown, a required one is missing, or a value is not allowed.
        """
        given = {k: v for k, v in flags.items() if v is not None}
        values = {"tracking_uri": cls.tracking_uri, **(_read_yaml(file) if file else {}), **given}
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise InputError(f"{file}: unknown key {key!r}; expected one of {', '.join(sorted(known))}")
        for key in ("model", "edits", "output"):
            if key not in values:
                raise InputError(f"{key}: missing; give --{key}" + (f" or set it in {file}" if file else ""))
        values = absolute(values)  # workers and later calls may start elsewhere
        if values.get("framings") is not None:
            values["framings"] = expanded(_patterns(values["framings"]))
        for name in ("modules", "subject_modules"):
            if values.get(name) is not None:
                values[name] = _patterns(values[name])
        if values.get("subject_modules") == (NONE,):
            values["subject_modules"] = ()
        if values.get("eval_at") is not None:
            values["eval_at"] = _numbers(values["eval_at"])
        try:
            return cls(**values)
        except InputError as error:
            key = str(error).partition(":")[0]
            raise InputError(f"{file}: {error}") if file and key not in given else error from None

    def edit_file(self) -> EditFile:
        """The edits. What one object has found out about the file is not looked up again."""
        return EditFile(self.edits, self.format, seed=self.seed)

    def with_dataset(self, edits: EditFile) -> "RunConfig":
        """The same with the data set inferred from the edits, where none was given. Edits that are appended later are made in the same modules.

        Args:
            edits: As :meth:`edit_file` gives it.

        Raises:
            InputError: The edits cannot be read, or are of no known format.
        """
        known = self.dataset is not None or self.modules is not None
        return self if known else replace(self, dataset=edits.format.name)

    @property
    def method(self) -> dict[str, Any]:
        """The method's options that were given; others are the preset's, or the published method's."""
        return {name: getattr(self, name) for name in MethodOptions.names() if getattr(self, name) is not None}

    def worker_spec(self) -> WorkerSpec:
        """The worker's share of this configuration."""
        options = {**self.method, **{name: getattr(self, name) for name in ("edits_per_turn", "group_size", "batch_tokens")}}
        return WorkerSpec(
            model=self.model,
            device=self.device,
            dtype=self.dtype,
            preset=self.preset,
            dataset=self.dataset,
            modules=self.modules,
            learning_rate=self.learning_rate,
            options=options,
            lookahead=self.lookahead,
            device_memory=None if self.device_memory is None else str(self.device_memory),
            seed=self.seed,
            min_probe_retention=self.min_probe_retention,
        )

    @property
    def is_distributed(self) -> bool:
        """Whether the model lives on several workers."""
        return self.shards * self.replicas > 1

    def resources(self) -> dict[str, float]:
        """What one shard needs, by Ray's names.

        Raises:
            InputError: The text has another form, or an amount is not a number.
        """
        found = {}
        for part in (self.resources_per_shard or "").split(","):
            name, equals, amount = part.strip().partition("=")
            try:
                if part.strip():
                    found[name.upper() if name.lower() in ("cpu", "gpu") else name] = float(amount) if equals and name else float("nan")
            except ValueError:
                found[name] = float("nan")
        if any(not amount >= 0 for amount in found.values()):
            raise InputError(f"resources_per_shard: expected amounts like gpu=1,cpu=4, found {self.resources_per_shard!r}")
        return found

    @property
    def limits(self) -> Limits:
        """When the model counts as collapsing."""
        return Limits(weight_growth=self.max_weight_growth, probe_retention=self.min_probe_retention, perplexity_growth=self.max_perplexity_growth)

    @property
    def places(self) -> dict[str, Any]:
        """The options that may be paths, but for a tracking URI that is turned off."""
        return {name: value for name in PLACES if (value := getattr(self, name)) != NONE}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``run.json`` and the tracker."""
        return asdict(self)


def known_options(stored: dict[str, Any], where: Path) -> dict[str, Any]:
    """Options of a run that is there, without those that this version does not know; a warning names them."""
    known = {f.name for f in fields(RunConfig)}
    if unknown := sorted(stored.keys() - known):
        logger.warning("%s: left out options that this version does not know: %s", where, ", ".join(unknown))
    return {name: value for name, value in stored.items() if name in known}


def _patterns(value: Any) -> tuple[Any, ...]:
    return tuple(split_patterns(value) if isinstance(value, str) else value if isinstance(value, (list, tuple)) else (value,))


def _numbers(value: Any) -> tuple[Any, ...]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else (value,)
    return tuple(int(part) if isinstance(part, str) and part.strip().isdigit() else part for part in parts)


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
    if isinstance(values.get("learning_rate"), str):  # YAML 1.1 reads 1e-6, without a dot, as a string
        try:
            values["learning_rate"] = float(values["learning_rate"])
        except ValueError:
            raise InputError(f"{path}: learning_rate: expected a number, found {values['learning_rate']!r}") from None
    return values
