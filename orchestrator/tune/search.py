"""What to edit in a model that nobody has measured, and how hard: candidates, their score, and the search among them.

A candidate is a family of modules in a window of neighbouring layers, shifted by a given strength. Learning rates that work lie
between 1e-6 and 1e-3, depending on the model; what they have in common is how far they move the weights. So the grid is one of
strengths: the norm of a full turn's shift, as a share of the norm of the weights that it changes. A turn's first shift is linear
in the rate, so one turn at rate 1 gives the rate of every strength.

    candidates --few edits--> all measured --best third--> twice the edits --best third--> ... --the whole sample--> winner

This is successive halving (Jamieson and Talwalkar, 2016), with thirds. Everything here is pure: measuring is a function that is given.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from editing.errors import InputError

FAMILIES = {
    "mlp-out": ({"down_proj"}, {"fc_out"}),
    "mlp-in": ({"gate_proj", "up_proj"}, {"gate_up_proj"}, {"fc_in"}),
    "attention-out": ({"o_proj"}, {"out_proj"}),
}
"""Families of modules by name: sets of last names, the first of which that a model has is taken."""

STRENGTHS = (0.03, 0.06, 0.12, 0.24)
"""Relative shifts of one turn that are tried."""

REFINED: dict[str, Any] = {"passes": 2, "preserve": "auto", "preserve_weight": 300.0, "preserve_text": "everyday"}
"""Options of the method that ``--refine`` tries on the candidates of the last rung."""

AT_SUBJECTS: dict[str, Any] = {"subject_scale": 0.05}
"""Beside those, options of the candidates that ``--refine`` also lets edit what the MLPs around their lowest layer write, at the subjects."""

Variant = Literal["published", "refined", "refined at subjects"]

_SIZES = (4, 2, 1)
_DEPTHS = (5 / 8, 3 / 4, 7 / 8, 1.0)
"""Windows: so many layers, the last of which lies at such a share of the depth. Lower layers make every turn dearer."""

_KEPT = 3
"""One candidate of so many goes on to the next rung."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to edit a model.

    Attributes:
        family: The family's name.
        layers: First and last layer.
        modules: Names of the modules.
        strength: Norm of a full turn's shift at this candidate's rate, as a share of the weights' norm.
        variant: With the published method's options, with :data:`REFINED`, or with :data:`AT_SUBJECTS` too.
        subjects: Names of the modules that it edits at the subjects then.
    """

    family: str
    layers: tuple[int, int]
    modules: tuple[str, ...]
    strength: float
    variant: Variant = "published"
    subjects: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """Options of the method that differ from the published ones."""
        if self.variant == "published":
            return {}
        return REFINED | (AT_SUBJECTS | {"subject_modules": list(self.subjects)} if self.variant == "refined at subjects" else {})

    @property
    def window(self) -> str:
        """Family and layers: what all strengths share."""
        first, last = self.layers
        return f"{self.family} {first}" if first == last else f"{self.family} {first}-{last}"

    @property
    def name(self) -> str:
        """Tells it from all others."""
        return f"{self.window} @{self.strength:g}{'' if self.variant == 'published' else f' {self.variant}'}"


@dataclass(frozen=True, slots=True)
class Objective:
    """What counts: the weighted harmonic mean of efficacy, generalization and locality retention.

    A harmonic mean is small when any part is, so that neither a model that learns nothing nor one that forgets everything wins.
    Metrics that the edits have no probes for are left out. A metric of n edits is taken as (n x + 1) / (n + 2), Laplace's rule of
    succession: of ten edits, none and one that generalize are much the same, and no part is ever 0.

    Attributes:
        efficacy: Weight of efficacy.
        generalization: Weight of generalization.
        retention: Weight of locality retention.
    """

    efficacy: float = 1.0
    generalization: float = 1.0
    retention: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """Read ``efficacy=1,generalization=1,retention=2``; what is not named keeps weight 1.

        Raises:
            InputError: It is not written so, or no weight is above 0.
        """
        weights = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = part.partition("=")
            try:
                weights[name] = float(value)
            except ValueError:
                weights[name] = float("nan")
            if name not in cls.__slots__ or not 0 <= weights[name] < float("inf"):
                raise InputError(f"objective: expected weights like efficacy=1,generalization=1,retention=2, found {part!r}")
        if not any(getattr(made := cls(**weights), name) for name in cls.__slots__):
            raise InputError("objective: expected a weight above 0, found none")
        return made

    def score(self, metrics: Mapping[str, float | None], num_edits: int) -> float:
        """Score of a measurement on so many edits, 0 to 1; 0 if it has no metric that counts."""
        named = (("efficacy", self.efficacy), ("generalization", self.generalization), ("locality_retention", self.retention))
        parts = [(weight, value) for name, weight in named if weight and (value := metrics.get(name)) is not None]
        total = sum(weight * (num_edits + 2) / (num_edits * value + 1) for weight, value in parts)
        return sum(weight for weight, _ in parts) / total if parts else 0.0


@dataclass(frozen=True, slots=True)
class TrialResult:
    """A candidate after some edits.

    Attributes:
        candidate: The candidate.
        edits: Edits that it was given.
        learning_rate: Rate that its strength came to.
        metrics: Means over these edits; empty if the turn was refused.
        score: What the objective makes of them.
    """

    candidate: Candidate
    edits: int
    learning_rate: float
    metrics: Mapping[str, float | None]
    score: float

    @property
    def rank(self) -> tuple[float, float, int, float]:
        """Larger is better; of equals, the one that learned more, edits fewer modules, and moves them less."""
        return self.score, self.metrics.get("efficacy") or 0.0, -len(self.candidate.modules), -self.candidate.strength


def families(names: Iterable[str], layers_path: str, wanted: Sequence[str] = ()) -> dict[str, dict[int, list[str]]]:
    """Families of modules: by name and layer, the modules.

    Args:
        names: All linears inside the decoder layers.
        layers_path: Name of the list of layers.
        wanted: Names of :data:`FAMILIES`, or last names of modules joined by ``+``, as ``q_proj+v_proj``. By default all of
            :data:`FAMILIES` that the model has.

    Raises:
        InputError: The model has no such modules.
    """
    kinds: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        layer = int(name.removeprefix(layers_path + ".").partition(".")[0])
        kinds[name.rpartition(".")[2]][layer].append(name)
    found = {}
    for family in wanted or FAMILIES:
        alternatives = FAMILIES.get(family) or ({*family.split("+")},)
        chosen = next((members for members in alternatives if members <= kinds.keys()), None)
        if chosen:
            layers = sorted({layer for kind in chosen for layer in kinds[kind]})
            found[family] = {layer: [name for kind in sorted(chosen) for name in kinds[kind].get(layer, ())] for layer in layers}
        elif wanted:
            expected = f"{', '.join(FAMILIES)}, or modules as q_proj+v_proj"
            raise InputError(f"families: the model has no {family}; expected {expected}; it has {', '.join(sorted(kinds))}")
    if not found:
        raise InputError(f"families: none of {', '.join(FAMILIES)} is in this model; give --families, of {', '.join(sorted(kinds))}")
    return found


def mlp_outputs(names: Sequence[str], layers_path: str) -> Mapping[int, Sequence[str]]:
    """By layer, the modules through which its MLP writes; none if they have no name that is known."""
    return families(names, layers_path, ["mlp-out"])["mlp-out"] if any({name.rpartition(".")[2]} in FAMILIES["mlp-out"] for name in names) else {}


def candidates(
    found: Mapping[str, Mapping[int, Sequence[str]]],
    num_layers: int,
    strengths: Sequence[float] = STRENGTHS,
    written: Mapping[int, Sequence[str]] | None = None,
) -> list[Candidate]:
    """Every family in every window at every strength, those of one first layer together.

    Args:
        found: As :func:`families` gives them.
        num_layers: Layers of the model.
        strengths: Relative shifts.
        written: By layer, the modules through which its MLP writes, if they may be edited at the subjects.
    """
    made = []
    for first, last in _windows(num_layers):
        around = [name for layer in (first - 1, first) for name in (written or {}).get(layer, ())]
        for family, layers in found.items():
            if modules := tuple(name for layer in range(first, last + 1) for name in layers.get(layer, ())):
                subjects = tuple(name for name in around if name not in modules)
                made += [Candidate(family, (first, last), modules, strength, subjects=subjects) for strength in strengths]
    return made


def variants(candidate: Candidate) -> list[Candidate]:
    """A candidate and what ``--refine`` makes of it."""
    tried: tuple[Variant, ...] = ("published", "refined", "refined at subjects") if candidate.subjects else ("published", "refined")
    return [replace(candidate, variant=variant) for variant in tried]


def _windows(num_layers: int) -> list[tuple[int, int]]:
    """First and last layers, without the first half of the depth where there is a choice."""
    ends = {max(1, round(depth * num_layers)) for depth in _DEPTHS}
    return sorted({(end - size, end - 1) for end in ends for size in _SIZES if end - size >= min(num_layers // 2, end - 1)})


def rung_sizes(sample: int, rungs: int) -> list[int]:
    """Edits of each rung: the last has the whole sample, each one before half as many."""
    return sorted({max(1, sample // 2**k) for k in range(rungs)})


def search(
    entrants: Sequence[Candidate],
    sizes: Sequence[int],
    measure: Callable[[Candidate, int], TrialResult],
    *,
    refine: bool = False,
) -> list[list[TrialResult]]:
    """Successive halving.

    Args:
        entrants: The candidates.
        sizes: Edits of each rung.
        measure: Measures a candidate with so many edits.
        refine: Let each candidate of the last rung also try its :func:`variants`.

    Returns:
        The measurements of every rung, best first; the winner is the first of the last.
    """
    table: list[list[TrialResult]] = []
    for rung, size in enumerate(sizes):
        if refine and rung == len(sizes) - 1:
            entrants = [variant for c in entrants for variant in variants(c)]
        table.append(sorted((measure(c, size) for c in entrants), key=lambda m: m.rank, reverse=True))
        kept = {m.candidate.name for m in table[-1][: _survivors(len(entrants))]}
        entrants = [c for c in entrants if c.name in kept]
    return table


def count_entrants(entrants: Sequence[Candidate], num_rungs: int, *, refine: bool = False) -> list[int]:
    """How many candidates :func:`search` will measure in each rung, at the most."""
    counts = [len(entrants)]
    while len(counts) < num_rungs:
        counts.append(min(counts[-1], _survivors(counts[-1])))
    return [*counts[:-1], counts[-1] * (max(len(variants(c)) for c in entrants) if refine else 1)]


def _survivors(num_entrants: int) -> int:
    return max(2, -(-num_entrants // _KEPT))


def explain_winner(table: Sequence[Sequence[TrialResult]]) -> str:
    """Why the winner won, in one sentence."""
    final = table[-1]
    best = final[0]
    figures = ((name, best.metrics.get(name)) for name in ("efficacy", "generalization", "locality_retention"))
    of_these = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures if value is not None)
    beside = f" against {final[1].score:.3f} of {final[1].candidate.name}, the next best" if len(final) > 1 else ""
    return f"{best.candidate.name} has the highest score after {best.edits} edits, {best.score:.3f}{beside}: {of_these}."
