"""The closed-form shift of one module in one turn (UltraEdit, arXiv 2505.14679, section 3).

    K (n, d_in)    keys of the turn's rows              K^, G^   both normalized by the lifelong moments
    G (n, d_out)   value gradients of the rows          r        strength of the ridge, 1 in the paper
    T (n, d_out)   targets                              lr       learning rate
    S (d_in, d_out) shift; added transposed to a linear's weight (d_out, d_in)

    T = -lr * ||k^||^2 * g^                       targets, row by row            (n, d_out)
    S = argmin_S ||K S - T||^2 + r ||S||^2        ridge regression
      = K' (K K' + r I)^-1 T                      row form,  an n x n system     (d_in, d_out)
      = (K' K + r I)^-1 K' T                      d_in form, a d_in x d_in system

Differences from the published implementation
    * It always builds the d_in form with a general inverse. Here the smaller of the two systems is factored by
      Cholesky; at d_in = 14,336 and n = 400 that is a hundred times cheaper.
    * The small system is built and solved in float64, so that the shift is exact to float32 rounding; in float32 the
      d_in form is off by up to 3e-2 when keys are large.
    * The shift stays a product of two thin factors. Nothing of size d_in x d_out exists but the weight itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from editing.config import SolveForm
from editing.sharding.shards import LinearShard

_BLOCK_ROWS = 64
_POWER_STEPS = 12
"""Enough for the first digit of an eigenvalue, which is all that a warning needs."""


@dataclass(frozen=True, slots=True)
class Shift:
    """``left @ right``: what is added, transposed, to a linear's weight.

    Attributes:
        left: ``(d_in, r)`` float32.
        right: ``(r, d_out)`` float32; ``r`` is the smaller of ``n`` and ``d_in``.
        condition: Condition number of the solved system, estimated; 1 is best, 1e16 is the end of float64. A tensor ``()`` until
            :func:`with_known_conditions` reads it, for which the host waits.
    """

    left: Tensor
    right: Tensor
    condition: float | Tensor = 1.0

    def dense(self) -> Tensor:
        """The shift itself, ``(d_in, d_out)``. For tests and export: the method never needs it."""
        return self.left @ self.right

    def scaled(self, factor: float) -> "Shift":
        """A multiple of it."""
        return replace(self, right=factor * self.right)

    @classmethod
    def undefined(cls, keys: Tensor, targets: Tensor) -> "Shift":
        """A shift of NaN, where the system has no solution."""
        return cls(torch.full_like(keys.T, torch.nan), torch.full_like(targets, torch.nan))

    @classmethod
    def total(cls, shifts: Sequence["Shift"]) -> "Shift":
        """The sum of several shifts of one module, with the worst of their conditions."""
        if len(shifts) == 1:
            return shifts[0]
        left, right = torch.cat([s.left for s in shifts], dim=1), torch.cat([s.right for s in shifts])
        return cls(left, right, max(float(s.condition) for s in shifts))

    @classmethod
    def nothing(cls, keys: Tensor, values: Tensor) -> "Shift":
        """The shift of no rows, which changes nothing; its widths are those of keys and values."""
        return cls(keys.new_zeros(keys.shape[1], 0), values.new_zeros(0, values.shape[1]), 1.0)

    def squared_norm(self) -> Tensor:
        """Squared Frobenius norm, float64, from the factors' Gram matrices; not finite if a factor is not.

        Where features are sliced over shards it is that of the slice. The sum over shards is that of the whole shift.
        """
        left, right = self.left.double(), self.right.double()
        return ((left.T @ left) * (right @ right.T)).sum()

    def norm(self) -> float:
        """Frobenius norm."""
        return float(self.squared_norm().clamp(min=0).sqrt())

    def add_to(self, weight: Tensor) -> None:
        """Add in place to a ``(d_out, d_in)`` weight of the factors' dtype."""
        weight.addmm_(self.right.T, self.left.T)

    def changes(self, exact: Tensor, stored: Tensor) -> bool:
        """Whether ``exact`` plus the shift, rounded to the dtype of ``stored``, differs from ``stored`` anywhere.

        Args:
            exact: ``(d_out, d_in)``, the weight that the shift is added to.
            stored: ``(d_out, d_in)``, the model's weight; the same tensor where it has the factors' dtype.
        """
        if not self.left.shape[1]:
            return False
        for a in range(0, len(exact), _BLOCK_ROWS):  # the first block mostly decides
            rows = slice(a, a + _BLOCK_ROWS)
            shifted = exact[rows].float().addmm(self.right.T[rows], self.left.T)
            if not torch.equal(shifted.to(stored.dtype), stored[rows]):
                return True
        return False


def targets(key_norms: Tensor, normalized_gradients: Tensor, learning_rate: float) -> Tensor:
    """``T``: by how much the output at each row is to change, ``(n, d_out)``.

    Args:
        key_norms: ``(n,)`` squared norms of the normalized keys.
        normalized_gradients: ``(n, d_out)``.
        learning_rate: Scale of the targets; 1e-6 on the paper's models.
    """
    return -learning_rate * key_norms.unsqueeze(1) * normalized_gradients


def choose_form(form: SolveForm, num_rows: int, shard: LinearShard) -> SolveForm:
    """``row`` or ``d_in``: the system to solve for a number of rows of a module.

    Args:
        form: The form of the configuration; ``auto`` takes the smaller system.
        num_rows: ``n``.
        shard: What this worker holds of the module. Where keys are sliced, no shard has the whole keys of the d_in form.
    """
    if shard.axis == "keys":
        return "row"
    if form != "auto":
        return form
    return "row" if num_rows <= shard.shape[0] else "d_in"


def solve_rows(keys: Tensor, gram: Tensor, targets: Tensor, ridge: float = 1.0) -> Shift:
    """Row form.

    Args:
        keys: ``K (n, d_in)``, or a shard's slice of the features.
        gram: ``K K' (n, n)`` float64, over *all* features.
        targets: ``T (n, d_out)``, or a shard's slice.
        ridge: ``r``.

    Returns:
        The shift, or the shard's slice of it; NaN if the system is not positive definite, since some key is not finite or beyond
        float64's range.
    """
    system = gram.clone()
    system.diagonal().add_(ridge)
    lower = cholesky(system)
    right = torch.cholesky_solve(targets.double(), lower)
    return Shift(keys.T, right.to(targets.dtype), _condition(system, lower))


def solve_features(keys: Tensor, targets: Tensor, ridge: float = 1.0) -> Shift:
    """d_in form, for more rows than features. Arguments and result as in :func:`solve_rows`, with whole keys only."""
    wide = keys.double()
    system = wide.T @ wide
    system.diagonal().add_(ridge)
    lower = cholesky(system)
    half = torch.linalg.solve_triangular(lower, wide.T @ targets.double(), upper=False)
    # S = L^-T (L^-1 K'T): the transposed inverse of L is the left factor
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=lower.dtype, device=lower.device), upper=False)
    return Shift(inverse.T.to(keys.dtype), half.to(keys.dtype), _condition(system, lower))


def gram_matrix(keys: Tensor) -> Tensor:
    """``K K'`` ``(n, n)`` in float64."""
    wide = keys.double()
    return wide @ wide.T


def cholesky(system: Tensor) -> Tensor:
    """The lower factor of a system, with a diagonal of NaN if it is not positive definite. Only its use tells, so the host does not wait."""
    lower: Tensor
    lower, failed = torch.linalg.cholesky_ex(system)
    lower.diagonal().add_(torch.where(failed > 0, torch.nan, 0.0))
    return lower


def with_known_conditions(shifts: Mapping[str, Shift]) -> dict[str, Shift]:
    """The same shifts with their conditions as numbers. The host waits once for all of them."""
    unread = {name: shift.condition for name, shift in shifts.items() if isinstance(shift.condition, Tensor)}
    known = dict(zip(unread, torch.stack([*unread.values()]).tolist(), strict=True)) if unread else {}
    return {name: replace(shift, condition=known.get(name, shift.condition)) for name, shift in shifts.items()}


def _condition(system: Tensor, lower: Tensor) -> Tensor:
    """Largest over smallest eigenvalue of a positive definite system and its Cholesky factor, by power iteration from below."""
    start = torch.linspace(1, 2, len(system), dtype=system.dtype, device=system.device).unsqueeze(1)
    largest, smallest = start, start
    for _ in range(_POWER_STEPS):
        largest = system @ (largest / largest.norm())
        smallest = torch.cholesky_solve(smallest / smallest.norm(), lower)
    condition: Tensor = largest.norm() * smallest.norm()
    return condition
