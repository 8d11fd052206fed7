"""How an editor edits: every option of the method and of the editor, in one place.

:class:`MethodOptions` says how shifts are found, :class:`EditorConfig` adds what is edited and how the work is cut. The defaults
are the published method (UltraEdit, arXiv 2505.14679). A preset, a file or a flag may say otherwise; a value that is not usable
is one clear line. This room knows neither torch nor the rest of the package, so that a command line can read it quickly.
"""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from editing.errors import InputError

MomentRule = Literal["published", "exact"]
"""How the lifelong moments count a group of rows: as the published code does, or exactly. See :mod:`editing.method.moments`."""

SolveForm = Literal["auto", "row", "d_in"]
"""Which linear system is solved: ``n x n``, ``d_in x d_in``, or the smaller of the two. See :mod:`editing.method.shift`."""

Join = Literal["raw", "published", "none"]
"""How a prompt and its answer meet: as typed, by the published rule, or with nothing between them. See :mod:`editing.model.joining`."""

SubjectTargets = Literal["gradient", "solved"]
"""What an edit's output at its subject is to become: a step along its gradient, or a value solved for. See :mod:`editing.method.residuals`."""

AnswerEnd = Literal["none", "chat", "stop"]
"""Where an edit writes what ends its answer too: nowhere, in chats, or a full stop in other texts as well."""

PrefixDType = Literal["same", "bfloat16"]
"""Precision of the products in the layers below the lowest edited one, while edits are made."""

PreserveForm = Literal["off", "auto", "exact", "sketch"]
"""Whether the ridge preserves, and how it stores the keys that it has seen. See :mod:`editing.method.preserve`."""

RAW, AUTO = "raw", "auto"
"""Values of ``framings`` that name no template: the prompt as typed, and this with a chat where the model has a template for one."""

NONE, EVERYDAY, HELD_OUT = "none", "everyday", "held-out"
"""Texts that are no file: none, what the ridge may preserve (``preserve_text``), and what nothing holds (``perplexity_text``). The last two ship
with the project."""

FEW_EDITS = 10
"""A turn of fewer may take more passes, with ``small_turns``."""

DEFAULT_BATCH_TOKENS = 2048
"""Padded tokens in one physical batch: enough for full matrix-multiply speed on a CPU, and small in memory."""


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """How shifts are found.

    Attributes:
        strength: In place of a learning rate: the first turn gets the rate at which its first pass shifts the modules edited at the answers
            by this share of their norm, and all later turns have that rate.
        strength_goal: Share of the first turn's questions, an edit in each of its framings, that are to be answered right after it. While fewer
            are, the first turn of 50 edits or more is done again at a higher strength, from half of it on, and finds the rate, anew if smaller
            ones came before it. 0 takes the strength as it is.
        moments: Rule of the lifelong moments: ``published`` for parity with the published code, or ``exact``.
        small_turns: Make turns of few edits hold. While few rows have been seen, those of statements that ship with the project fill up the
            moments and the ridge (:mod:`editing.moment_prior`); and where there are several passes, a turn of few edits may take as many in
            all as a turn of ten does.
        ridge: Strength ``r`` of the ridge in the solve; 1 in the paper.
        passes: Most shifts that one turn may make; 1 is the published method. Each further pass gives targets to pending rows
            only, and runs the suffix once more. More than one pass keeps a copy of the edited weights during a turn.
        margin: Nats by which the answer's log-probability must exceed every other token's. A row below it is pending.
        preserve: Whether the ridge also holds back change on the keys of all tokens seen, and how it stores them:
            ``off``, ``exact``, ``sketch``, or ``auto`` for the exact form in modules of few inputs.
        preserve_weight: Weight ``w`` of the mean squared change on those tokens, beside the ridge.
        preserve_rank: Directions in the sketch.
        preserve_text: Text that no edit is about and that the ridge preserves too: ``none``, ``everyday`` for the text that
            ships with the project, or a file of passages with empty lines between them. See :mod:`editing.reference_text`.
        preserve_framed: Also preserve what the model does when it is asked a sentence of that text in each framing of ``framings`` but the raw one.
        preserve_neighbours: Also preserve what the model would answer to an edit's prompt about other subjects: this many of those that ship
            with the project. Each counts as one row of its turn. Without a ridge that preserves nothing holds them.
            See :mod:`editing.neighbours`.
        preserve_alike: Of these subjects those that are most alike the edit's own, as the layers below the edited ones tell them; else, or if
            there is no such layer, a few of several kinds, one after another. See :mod:`editing.alike`.
        preserve_outputs: From 0 to below 1: how much more the ridge holds back changes of an output that the predictions of that text depend on,
            and how much less those of others. See :mod:`editing.method.output_side`.
        whiten: Whiten value gradients with their full second moment, not feature by feature. See :mod:`editing.method.whitening`.
        subject_modules: Names or patterns of linears that are edited where the subject of an edit ends in its prompt, not where
            its answer begins. The published method has none. An edit whose prompt has no subject leaves them unchanged.
        find_subjects: An edit that comes without a subject is about the quotation or name in its prompt
            (:func:`editing.subjects.likely_subject`); otherwise it has none.
        subject_scale: Scale of their targets, as a multiple of the learning rate.
        subject_targets: Where these targets come from: ``gradient`` for one step along it, or ``solved`` for residuals that make the
            answer the model's own. Solved targets need a text to preserve; beside it their ridge remembers the keys of all edits so far.
        subject_steps: Most steps in which a residual is solved; each runs the suffix once for the edits that are not settled yet.
        subject_margin: As ``margin``; an edit whose every row leads by it is settled, and its residual stays as it is.
        subject_bound: Largest norm of a residual, as a share of the mean norm of its module's outputs there.
        subject_contexts: Sentences, one each time, before the prompt as further forms of an edit; its residual serves all of them.
            They ship with the project (``editing/probes/contexts.txt``).
        subject_weight: Weight of the mean squared change on that text, where targets are solved.
        join: How a prompt and its answer meet: ``raw`` for the text as typed, ``published`` for the published code's tokens, or ``none``.
            See :mod:`editing.model.joining`.
        framings: The ways in which each edit is written, all in the same turn: names of shipped framings, definitions, or files of them.
            ``auto`` is ``raw``, and ``chat`` beside it where the model has a chat template. See :mod:`editing.model.framing`.
        answer_end: Where an edit also writes what ends its answer: ``none``, ``chat`` for the end of the turn in a chat, or ``stop`` for a
            full stop in a text too.
        prefix_dtype: Precision of matrix products in the layers below the lowest edited one while edits are made: ``same`` as the weights,
            or ``bfloat16``, which is faster on processors and GPUs that multiply it natively. Weights, the edited layers and all
            measurements but those in a turn's own report keep theirs.
    """

    strength: float | None = None
    strength_goal: float = 0.0
    moments: MomentRule = "published"
    small_turns: bool = False
    ridge: float = 1.0
    passes: int = 1
    margin: float = 0.0
    preserve: PreserveForm = "off"
    preserve_weight: float = 1000.0
    preserve_rank: int = 256
    preserve_text: str = NONE
    preserve_framed: bool = True
    preserve_neighbours: int = 0
    preserve_alike: bool = False
    preserve_outputs: float = 0.0
    whiten: bool = False
    subject_modules: tuple[str, ...] = ()
    find_subjects: bool = False
    subject_scale: float = 0.1
    subject_targets: SubjectTargets = "gradient"
    subject_steps: int = 10
    subject_margin: float = 1.0
    subject_bound: float = 1.0
    subject_contexts: int = 0
    subject_weight: float = 5000.0
    join: Join = "raw"
    framings: tuple[str, ...] = (AUTO,)
    answer_end: AnswerEnd = "chat"
    prefix_dtype: PrefixDType = "same"

    def __post_init__(self) -> None:
        if self.strength is not None:
            check_number("strength", self.strength)
        check_number("strength_goal", self.strength_goal, or_zero=True)
        if self.strength_goal > 1:
            raise InputError(f"strength_goal: expected a share from 0 to 1, found {self.strength_goal!r}")
        check_number("ridge", self.ridge)
        check_number("margin", self.margin, or_zero=True)
        check_number("preserve_weight", self.preserve_weight)
        check_number("preserve_outputs", self.preserve_outputs, or_zero=True)
        if self.preserve_outputs >= 1:
            raise InputError(f"preserve_outputs: expected a share from 0 to below 1, found {self.preserve_outputs!r}")
        check_number("subject_margin", self.subject_margin, or_zero=True)
        for name in ("subject_scale", "subject_bound", "subject_weight"):
            check_number(name, getattr(self, name))
        for name in ("passes", "preserve_rank", "subject_steps"):
            check_whole(name, getattr(self, name))
        for name in ("subject_contexts", "preserve_neighbours"):
            check_whole(name, getattr(self, name), at_least=0)
        check_choice("moments", self.moments, get_args(MomentRule))
        check_choice("subject_targets", self.subject_targets, get_args(SubjectTargets))
        check_choice("preserve", self.preserve, get_args(PreserveForm))
        check_choice("join", self.join, get_args(Join))
        check_choice("answer_end", self.answer_end, get_args(AnswerEnd))
        check_choice("prefix_dtype", self.prefix_dtype, get_args(PrefixDType))
        if not isinstance(self.preserve_text, str) or not self.preserve_text:
            raise InputError(f"preserve_text: expected {NONE}, {EVERYDAY} or a file, found {self.preserve_text!r}")
        for name in ("small_turns", "whiten", "preserve_framed", "preserve_alike", "find_subjects"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}: expected true or false, found {getattr(self, name)!r}")
        if not isinstance(self.subject_modules, (list, tuple)) or not all(isinstance(pattern, str) for pattern in self.subject_modules):
            raise InputError(f"subject_modules: expected names of modules, found {self.subject_modules!r}")
        object.__setattr__(self, "subject_modules", tuple(self.subject_modules))
        if not isinstance(self.framings, (list, tuple)) or not self.framings or not all(isinstance(one, str) and one for one in self.framings):
            raise InputError(f"framings: expected names or definitions of framings, found {self.framings!r}")
        if len(set(self.framings)) < len(self.framings):
            raise InputError(f"framings: expected each of them once, found {', '.join(self.framings)}")
        object.__setattr__(self, "framings", tuple(self.framings))
        if self.solves_targets and not (self.subject_modules and self.preserves_text):
            lacking = "subject_modules" if not self.subject_modules else "preserve_text" if self.preserves else "preserve"
            raise InputError(f"subject_targets: solved targets need {lacking}, found {getattr(self, lacking) or 'none'}; set it, or use gradient")

    def passes_of(self, num_edits: int) -> int:
        """Most passes of a turn: its further ones run few sequences where it has few edits."""
        return self.passes * max(1, FEW_EDITS // num_edits) if self.small_turns and self.passes > 1 else self.passes

    @property
    def preserves(self) -> bool:
        """Whether the ridge preserves at all."""
        return self.preserve != "off"

    @property
    def holds_neighbours(self) -> bool:
        """Whether edits have neighbours, and a ridge that holds them."""
        return self.preserves and self.preserve_neighbours > 0

    @property
    def weighs_outputs(self) -> bool:
        """Whether the ridge knows which outputs a text depends on."""
        return self.preserves_text and self.preserve_outputs > 0

    @property
    def solves_targets(self) -> bool:
        """Whether targets at the subjects are solved."""
        return self.subject_targets == "solved"

    @property
    def preserves_text(self) -> bool:
        """Whether there is a text to preserve, and a ridge that preserves it."""
        return self.preserves and self.preserve_text != NONE

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all options of the method, without those of :class:`EditorConfig`."""
        return tuple(f.name for f in fields(MethodOptions))


@dataclass(frozen=True, kw_only=True)
class EditorConfig(MethodOptions):
    """How edits are made: the options of the method, and these.

    Attributes:
        modules: Names or patterns of the linears to edit at the answers.
        learning_rate: Scale of the targets; 1e-6 on the paper's 7B models. ``None`` with a strength.
        edits_per_turn: Edits that share one shift per module; 100 in the paper.
        group_size: Edits over whose answer tokens the loss is averaged; 10 in the paper.
        solve: Which linear system is solved; ``auto`` takes the smaller one. A module whose keys are sliced over shards always
            uses the row form, for which no shard needs a whole key.
        masters: Keep float32 copies of edited modules whose weights have a lower precision.
        batch_tokens: Padded tokens in one physical batch. Changes speed and memory, and results by rounding only.
        cache_prefix: Run the layers below the lowest edited one separately, for many turns at once.
        preset: Name of the preset that gave the values not given otherwise; for the record only.
    """

    modules: tuple[str, ...]
    learning_rate: float | None = None
    edits_per_turn: int = 100
    group_size: int = 10
    solve: SolveForm = "auto"
    masters: bool = True
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    cache_prefix: bool = True
    preset: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strength is None:
            check_number("learning_rate", self.learning_rate)
            if self.strength_goal:
                raise InputError("strength_goal: is what a strength is raised to, and a learning rate is taken as it is; give a strength, or no goal")
        elif self.learning_rate is not None:
            raise InputError("strength: takes the place of learning_rate; give one of them")
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
