"""A change of a weight as the product of two thin matrices: how thin it can be, and what is lost.

    S ~ B A      S (d_out, d_in), B (d_out, r), A (r, d_in)

``B A`` is the projection of ``S`` on ``r`` of its own left (or right) singular directions, so that what is lost is known exactly: it is
the rest of the squared norm, whatever the accuracy of the directions. Pure algebra: no model, no file.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_SMALL = 1024
"""Up to this width all singular directions are computed; a larger matrix is first asked whether few of them suffice."""

_FIRST_GUESS = 64
_MORE = 16
"""Directions that are computed beyond those that are kept, which makes these accurate."""

_POWER_STEPS = 3


@dataclass(frozen=True, slots=True)
class LowRank:
    """Two thin factors of a ``(d_out, d_in)`` matrix.

    Attributes:
        left: ``B (d_out, r)`` float32.
        right: ``A (r, d_in)`` float32.
        norm: Frobenius norm of the matrix.
        lost: Frobenius norm of what the product lacks of it.
    """

    left: Tensor
    right: Tensor
    norm: float
    lost: float

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.right.shape[0]

    @property
    def kept(self) -> float:
        """Share of the matrix's squared norm that the product has, from 0 to 1; 1 of a matrix that is 0."""
        return 1 - self.error**2

    @property
    def error(self) -> float:
        """Norm of what is lost as a share of the norm; 0 of a matrix that is 0."""
        return self.lost / self.norm if self.norm else 0.0

    def dense(self) -> Tensor:
        """The product ``(d_out, d_in)``."""
        return self.left @ self.right

    def padded(self, rank: int) -> "LowRank":
        """The same product from factors of a larger rank, filled up with zeros."""
        more = rank - self.rank
        left = torch.cat((self.left, self.left.new_zeros(len(self.left), more)), dim=1)
        return LowRank(left, torch.cat((self.right, self.right.new_zeros(more, self.right.shape[1]))), self.norm, self.lost)


def factor(matrix: Tensor, *, rank: int | None = None, tolerance: float = 0.0) -> LowRank:
    """The best product of two thin factors.

    Args:
        matrix: ``(d_out, d_in)``, finite.
        rank: Most directions that are kept; ``None`` for as many as the tolerance asks for.
        tolerance: Frobenius norm that may be lost: the fewest directions that stay below it are kept.

    Returns:
        Factors of at least one direction, which is zero if the matrix is.
    """
    wide = matrix.double()
    if wide.shape[0] > wide.shape[1]:  # the shorter side is the left one
        found = factor(wide.T, rank=rank, tolerance=tolerance)
        return LowRank(found.right.T.contiguous(), found.left.T.contiguous(), found.norm, found.lost)
    norm, most = _norm(wide), min(rank or len(wide), len(wide))
    for directions in _directions(wide, most):
        projected = directions.T @ wide
        kept = projected.norm(dim=1).square()
        count = min(_enough(kept, norm, tolerance), most)
        if count < len(kept) - _MORE or count == most or len(kept) == len(wide):
            break
    lost = math.sqrt(max(0.0, norm**2 - float(kept[:count].sum())))
    if lost < norm * 1e-7:  # below the accuracy of a difference of squares in float64
        lost = _norm(wide - directions[:, :count] @ projected[:count])
    scale = kept[:count].pow(0.25).clamp(min=torch.finfo(torch.float32).tiny)  # both factors get the root of a singular value
    return LowRank((directions[:, :count] * scale).float(), (projected[:count] / scale[:, None]).float(), norm, lost)


def rounding(weight: Tensor, num_steps: int = 1) -> float:
    """Frobenius norm, nearly, of what rounding in float32 has left in a weight to which so many shifts were added."""
    return torch.finfo(torch.float32).eps / 2 * float(weight.double().norm()) * math.sqrt(max(1, num_steps))


def _norm(wide: Tensor) -> float:
    """Frobenius norm, summed row by row: one long sum is right to 1e-12 only, and what is lost is a difference."""
    return math.sqrt(float(wide.square().sum(dim=1).sum()))


def _enough(kept: Tensor, norm: float, tolerance: float) -> int:
    """How many of the directions, the strongest first, leave no more than the tolerance; at least 1, at most one more than there are."""
    rest = (norm**2 - kept.cumsum(0)).clamp(min=0)
    return max(1, int((rest > max(tolerance, norm * 1e-7) ** 2).sum()) + 1)


def _directions(wide: Tensor, most: int) -> Iterator[Tensor]:
    """Orthonormal directions ``(d, k)`` of the shorter side, the strongest first: of a large matrix ever more of them, in the end all."""
    width, count = len(wide), min(most, _FIRST_GUESS) + _MORE
    while width > _SMALL and count < width // 4:
        yield _sketched(wide, count)
        count = min(most + _MORE, 4 * count) if count < most + _MORE else width
    yield torch.linalg.eigh(wide @ wide.T).eigenvectors.flip(1)


def _sketched(wide: Tensor, count: int) -> Tensor:
    """The strongest directions by random projection with power steps; the same ones every time."""
    dice = torch.Generator().manual_seed(0)
    found = wide @ torch.randn(wide.shape[1], count, generator=dice, dtype=torch.float64).to(wide.device)
    for _ in range(_POWER_STEPS):
        found = wide @ (wide.T @ torch.linalg.qr(found).Q)
    basis = torch.linalg.qr(found).Q
    inside = basis.T @ wide
    turned: Tensor = basis @ torch.linalg.eigh(inside @ inside.T).eigenvectors.flip(1)
    return turned
