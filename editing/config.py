"""How an editor edits. The defaults are the published method; a preset, a file or a flag may say otherwise."""

from dataclasses import dataclass, fields
from typing import get_args

from editing.errors import InputError
from editing.method.moments import MomentRule
from editing.method.preserve import PreserveForm
from editing.method.shift import SolveForm
from editing.model.joining import Join
from editing.model.tokenization import DEFAULT_BATCH_TOKENS

NONE, EVERYDAY = "none", "everyday"
"""Values of ``preserve_text`` that name no file: no text, and the one that ships with the project."""


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """How shifts are found.

    Attributes:
        moments: Rule of the lifelong moments.
        ridge: Strength of the ridge in the solve.
        passes: Shifts of one turn at the most; 1 is the published method. Each further one gives targets only to rows that are
            not settled, and costs a run of the suffix. More than one keeps a copy of the edited weights during a turn.
        margin: By how many nats the answer's log-probability must exceed every other token's for a row to be settled.
        preserve: Whether the ridge holds back change on the keys of all tokens seen, and the form in which it knows them;
            ``auto`` takes the exact one for modules of few inputs. See :mod:`editing.method.preserve`.
        preserve_weight: Weight of the mean change on those tokens, beside the ridge.
        preserve_rank: Directions of the sketch.
        preserve_text: Text that no edit is about, and that the ridge preserves too: ``none``, ``everyday``
            for what ships with the project, or a file of passages with empty lines between them. See :mod:`editing.method.reference_text`.
        whiten: Whiten value gradients as a whole instead of scaling feature by feature. See :mod:`editing.method.whitening`.
        subject_modules: Names or patterns of linears that are edited where the subject of an edit ends in its prompt, instead of where
            its answer begins. The published method has none; an edit without a subject in its prompt leaves them as they are.
        subject_scale: Their targets' scale, as a multiple of the learning rate.
        join: How a prompt and its answer meet; the published code's way is ``published``. See :mod:`editing.model.joining`.
    """

    moments: MomentRule = "published"
    ridge: float = 1.0
    passes: int = 1
    margin: float = 0.0
    preserve: PreserveForm = "off"
    preserve_weight: float = 1000.0
    preserve_rank: int = 256
    preserve_text: str = NONE
    whiten: bool = False
    subject_modules: tuple[str, ...] = ()
    subject_scale: float = 0.1
    join: Join = "raw"

    def __post_init__(self) -> None:
        check_number("ridge", self.ridge)
        check_number("margin", self.margin, or_zero=True)
        check_number("preserve_weight", self.preserve_weight)
        check_number("subject_scale", self.subject_scale)
        for name in ("passes", "preserve_rank"):
            check_whole(name, getattr(self, name))
        check_choice("moments", self.moments, get_args(MomentRule))
        check_choice("preserve", self.preserve, get_args(PreserveForm))
        check_choice("join", self.join, get_args(Join))
        if not isinstance(self.preserve_text, str) or not self.preserve_text:
            raise InputError(f"preserve_text: expected {NONE}, {EVERYDAY} or a file, found {self.preserve_text!r}")
        if not isinstance(self.whiten, bool):
            raise InputError(f"whiten: expected true or false, found {self.whiten!r}")
        if not isinstance(self.subject_modules, (list, tuple)) or not all(isinstance(pattern, str) for pattern in self.subject_modules):
            raise InputError(f"subject_modules: expected names of modules, found {self.subject_modules!r}")
        object.__setattr__(self, "subject_modules", tuple(self.subject_modules))

    @property
    def preserves_text(self) -> bool:
        """Whether there is a text to preserve, and a ridge that does."""
        return self.preserve != "off" and self.preserve_text != NONE

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all options."""
        return tuple(f.name for f in fields(MethodOptions))


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


def check_number(name: str, value: object, *, or_zero: bool = False) -> None:
    """Raise :class:`InputError` unless a value is a finite number above 0, or 0 where that is allowed."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value < float("inf") and (or_zero or value)):
        raise InputError(f"{name}: expected a finite number {'of at least' if or_zero else 'above'} 0, found {value!r}")


def check_whole(name: str, value: object, *, at_least: int = 1) -> None:
    """Raise :class:`InputError` unless a value is a whole number that is large enough."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InputError(f"{name}: expected a whole number of at least {at_least}, found {value!r}")


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise :class:`InputError` unless a value is one of the allowed ones."""
    if value not in allowed:
        raise InputError(f"{name}: expected one of {', '.join(allowed)}, found {value!r}")
