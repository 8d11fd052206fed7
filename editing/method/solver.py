"""The solver of one turn: rows and lifelong statistics in, one shift per module out. Knows no model and no weight.

For each module, with the lifelong moments or second moments of this turn and all turns before it:

    K  (n, d_in)     keys of the module's rows               K^   normalized keys
    G  (n, d_out)    value gradients                         G^   normalized, or whitened, value gradients
    T  (n, d_out)    targets  -lr ||k^||^2 g^                0 for rows that are not pending in a further pass
    M  (d_in, d_in)  r I, or r I + w C of the preserving ridge, and the keys of earlier edits where targets are solved
    S  (d_in, d_out) shift  M^-1 K' (K M^-1 K' + I)^-1 T     at a subject: lr times subject_scale, or T solved; in place of I the
                                                             output side, where there is one (:mod:`editing.method.output_side`)

A shard solves for its slice of ``S``; only Gram matrices and squared norms travel (:mod:`editing.method.features`). A system that
cannot be solved gives a shift of NaN on every shard, and its norm refuses the turn on all of them alike.

Differences from the published implementation
    * Further passes, the preserving ridge, whitening and edits at subjects are not in it; all are off by default.
    * The shift of a module without rows is nothing, where the published code has no such case.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # documented, but not in its __all__

from editing.config import EditorConfig
from editing.errors import TurnRefused
from editing.method.features import Features
from editing.method.lifelong import LifelongStatistics
from editing.method.output_side import OutputSide
from editing.method.preserve import PreservingRidge, System
from editing.method.rows import Site, TurnRows
from editing.method.shift import Shift, choose_form, solve_features, solve_rows, targets, with_known_conditions
from editing.method.whitening import whiten
from editing.sharding.collectives import Collectives, frobenius_norms
from editing.sharding.shards import LinearShard


@dataclass(frozen=True, slots=True)
class Solution:
    """What one pass over a turn adds; empty if there was nothing to solve.

    Attributes:
        shifts: By module, the shift or this shard's slice of it.
        norms: By module, the Frobenius norm of the whole shift.
    """

    shifts: dict[str, Shift]
    norms: dict[str, float]

    @classmethod
    def empty(cls) -> "Solution":
        """Of a pass without pending rows."""
        return cls({}, {})

    def scaled(self, factor: float) -> "Solution":
        """A multiple of it."""
        return Solution(
            {name: shift.scaled(factor) for name, shift in self.shifts.items()}, {name: factor * norm for name, norm in self.norms.items()}
        )


class TurnSolver:
    """Solves all passes of one turn.

    Args:
        statistics: Lifelong statistics, with those of this turn.
        shards: What this worker holds of each module.
        config: Ridge and options of the method.
        collectives: How partial results become whole. All workers solve the same passes in the same order.
        reference: By module, what the preserving ridge knows of the reference text.
        remembered: By module with solved targets, the second moment of the keys of the turns before this one.
        neighbours: By module edited at the answers, the second moment of the keys of the turn's neighbours.
        outputs: By module edited at the answers, which of its outputs the reference text depends on.
        rate: The learning rate; by default the configured one.
    """

    def __init__(
        self,
        statistics: LifelongStatistics,
        shards: Mapping[str, LinearShard],
        config: EditorConfig,
        collectives: Collectives,
        reference: Mapping[str, PreservingRidge] | None = None,
        remembered: Mapping[str, PreservingRidge] | None = None,
        neighbours: Mapping[str, PreservingRidge] | None = None,
        outputs: Mapping[str, OutputSide] | None = None,
        rate: float | None = None,
    ) -> None:
        self.rate = float(rate or config.learning_rate or 0.0)
        self._statistics, self._shards, self._config, self._collectives = statistics, shards, config, collectives
        self._reference, self._remembered, self._neighbours = reference or {}, remembered or {}, neighbours or {}
        self._outputs = outputs or {}
        self._systems: dict[str, System] = {}  # of preserving ridges, factored in the first pass for all of them

    def solve(self, rows: TurnRows, pending: Mapping[Site, Tensor] | None = None) -> Solution:
        """One pass's shifts.

        Args:
            rows: All rows of the turn, as they were captured for this pass.
            pending: At each site, ``(n,)`` or ``(s,)`` float32: 0 for rows whose output is to stay as it is, else 1. By default
                all rows get targets.

        Raises:
            TurnRefused: A shift is not finite.
        """
        settled = {site for site, wanted in (pending or {}).items() if not wanted.any()}
        found = self._with_norms({name: self._shift(name, rows, pending, settled) for name in self._shards})
        for name, norm in found.norms.items():
            if not norm < float("inf"):
                raise TurnRefused(f"the shift of {name} is not finite")
        return found

    def total(self, passes: Sequence[Solution]) -> Solution:
        """What several passes have added together."""
        if len(passes) == 1:
            return passes[0]
        return self._with_norms({name: Shift.total([p.shifts[name] for p in passes if p.shifts]) for name in self._shards})

    def targets(self, name: str, rows: TurnRows) -> Tensor:
        """``T (n, d_out)`` of a module, or this shard's slice of it."""
        if name in rows.residuals:
            return rows.residuals[name]
        keys, shard, site = rows.keys[name], self._shards[name], rows.site(name)
        moments = self._statistics.at(site)[shard.shape]
        normalized = moments.of_features(shard.key_span).normalize(keys)
        rate = self.rate * (self._config.subject_scale if site == "subject" else 1.0)
        return targets(self._features(name).squared_norms(normalized), self._normalized_gradients(name, rows), rate)

    def _shift(self, name: str, rows: TurnRows, pending: Mapping[Site, Tensor] | None, settled: Collection[Site]) -> Shift:
        keys, gradients, site = rows.keys[name], rows.value_gradients[name], rows.site(name)
        wanted = None if pending is None else pending[site]
        if not len(keys) or site in settled:
            return Shift.nothing(keys, gradients)
        try:
            goal = self.targets(name, rows)
            if wanted is not None:
                goal = goal * wanted.unsqueeze(1)
            solve = self._solve_remembering if name in rows.residuals else self._solve_preserving
            return solve(name, keys, goal) if self._config.preserves else self._solve_plain(name, keys, goal)
        except LinAlgError:
            return Shift.undefined(keys, gradients)

    def _normalized_gradients(self, name: str, rows: TurnRows) -> Tensor:
        gradients, shard = rows.value_gradients[name], self._shards[name]
        if self._config.whiten:
            return whiten(gradients, self._statistics.whitening[name], Features(shard, "values", self._collectives))
        return self._statistics.at(rows.site(name))[shard.shape].of_features(shard.value_span).normalize(gradients)

    def _solve_preserving(self, name: str, keys: Tensor, goal: Tensor) -> Shift:
        if name not in self._systems:
            ridge, config = self._statistics.preserved[name], self._config
            text, rows = self._reference.get(name), self._neighbours.get(name)
            self._systems[name] = ridge.system(ridge=config.ridge, weight=config.preserve_weight, text=text, rows=rows)
        return self._solve_with(self._systems[name], name, keys, goal)

    def _solve_remembering(self, name: str, keys: Tensor, goal: Tensor) -> Shift:
        """Beside the text and all edits before this turn."""
        ridge, weight = self._config.ridge, self._config.subject_weight
        system = self._reference[name].system(ridge=ridge, weight=weight, rows=self._remembered.get(name))
        return self._solve_with(system, name, keys, goal)

    def _solve_with(self, system: System, name: str, keys: Tensor, goal: Tensor) -> Shift:
        left, gram = system.solve(keys, self._features(name))
        if name in self._outputs:
            return self._outputs[name].solve(left, gram, goal, Features(self._shards[name], "values", self._collectives))
        return solve_rows(left.to(goal.dtype), gram, goal, ridge=1.0)

    def _solve_plain(self, name: str, keys: Tensor, goal: Tensor) -> Shift:
        if choose_form(self._config.solve, len(keys), self._shards[name]) == "d_in":
            return solve_features(keys, goal, self._config.ridge)
        return solve_rows(keys, self._features(name).gram(keys), goal, self._config.ridge)

    def _features(self, name: str) -> Features:
        return Features(self._shards[name], "keys", self._collectives)

    def _with_norms(self, shifts: dict[str, Shift]) -> Solution:
        norms = frobenius_norms({name: shift.squared_norm() for name, shift in shifts.items()}, self._shards, self._collectives)
        return Solution(with_known_conditions(shifts), norms)
