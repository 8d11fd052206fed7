"""A ridge that knows what the model is used for: what it holds back is change along the keys of everyday tokens.

The published ridge ``r I`` holds back every direction of a key alike. The preserving one adds the lifelong second moment of
the keys of *all* tokens that went through the edited module, prompts included, and, if asked for, that of a text that no edit
is about (:mod:`editing.method.reference_text`):

    C = mean k k' + p mean k k'                    over all tokens so far, over the text's (d_in, d_in)
    S = argmin ||K S - T||^2 + r ||S||^2 + w (mean_tokens ||k S||^2 + p mean_text ||k S||^2)
      = (K'K + M)^-1 K'T                           M = r I + w C
      = M^-1 K' (K M^-1 K' + I)^-1 T               an n x n system again, once M is solved for the n keys of the rows

so a shift may change outputs freely where no token has been, and pays ``w`` times what it changes on the average token.
Keys here are what the solve uses, the module's inputs as they are: the moments normalize keys for the *targets* alone, and
their changing mean and scale do not touch ``C``. It is a mean, so a weight means the same after 10^2 and 10^6 tokens; and the text has
a mean of its own, so that it counts as much after 10^6 edits as before the first: ``p`` = 0.3 of what the edits' tokens count.

Two forms give ``M^-1 K'`` and ``K M^-1 K'``, with float64 inside:

``exact``   keeps the sum of ``k k'`` whole, ``d_in x d_in``, and factors ``M`` by Cholesky each turn: ``M = L L'``, ``X = L^-1 K'``,
            ``M^-1 K' = L^-T X``, ``K M^-1 K' = X'X``. For small ``d_in``.
``sketch``  keeps ``B (rank, d_in)``, a frequent-directions sketch (Liberty 2013; Ghashami et al. 2016), and the exact
            diagonal of the sum. The sum's residual ``A'A - B'B`` is positive semidefinite and at most ``||A - A_k||_F^2 / (rank - k)``
            in norm for every ``k < rank``; of it the diagonal is kept, which is known exactly:

                C ~ (B'B + D) / N,   D = diag(A'A) - diag(B'B) >= 0
                M = E + V'V,         E = r I + w D / N diagonal,   V = sqrt(w / N) B
                M^-1 = E^-1 - E^-1 V' (I + V E^-1 V')^-1 V E^-1                              (Woodbury)

            so a turn solves a rank x rank and an n x n system. A text has ``V`` and ``D`` of its own, which join these. While
            fewer than ``rank`` tokens or features were seen, it is exact.

Where keys are sliced over shards, the sketch's directions stay sliced by feature like the keys themselves, and what travels
are Gram matrices, of at most ``2 rank`` and ``rank + n`` rows. The exact form lets the keys of the turn's tokens travel, never
the ``d_in x d_in`` sum, and every shard keeps all of it. Tokens are taken up in the turn's order in blocks of ``rank``,
whatever the batches and replicas, so every topology has the same sketch. Sketches merge as they grow: the directions of one are
rows to another, with the same bound.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from editing.method.second_moments import Features, SecondMoment

PreserveForm = Literal["off", "auto", "exact", "sketch"]

TEXT_WEIGHT = 0.3
"""Of a text that no edit is about, beside the tokens seen. At 1, retention falls more than perplexity gains (docs/LOG.md, "Everyday text")."""

_MAX_EXACT = 2048
"""Features up to which ``auto`` keeps the exact form: 32 MiB a module, and a Cholesky of 3 GFLOP a turn."""


class System(Protocol):
    """``M`` of one module in one turn, ready to be solved for keys; all passes of the turn solve the same one."""

    def through(self, keys: Tensor, features: Features) -> tuple[Tensor, Tensor]:
        """``(M^-1 K')'`` ``(n, held)`` and ``K M^-1 K'`` ``(n, n)``, both float64.

        Args:
            keys: ``K`` ``(n, held)``.
            features: What is held of them.

        Raises:
            torch.linalg.LinAlgError: Some key is not finite.
        """
        ...


class PreservingRidge(Protocol):
    """The second moment of a module's keys, in either form. Immutable: an update is a new object.

    Attributes:
        count: Tokens so far.
    """

    @property
    def count(self) -> int: ...

    def update(self, tokens: Tensor, features: Features) -> "PreservingRidge":
        """With the keys ``(t, held)`` of further tokens."""
        ...

    def system(self, *, ridge: float, weight: float, text: Self | None = None) -> System:
        """``M``.

        Args:
            ridge: ``r``.
            weight: ``w``.
            text: What a text that no edit is about has left, in the same form.

        Raises:
            torch.linalg.LinAlgError: Some key is not finite.
        """
        ...


@dataclass(frozen=True, slots=True)
class ExactRidge:
    """Exact form.

    Attributes:
        moment: Of the keys of all tokens, whole on every shard.
    """

    moment: SecondMoment

    @property
    def count(self) -> int:
        return self.moment.count

    def update(self, tokens: Tensor, features: Features) -> "ExactRidge":
        return ExactRidge(self.moment.add(features.whole(tokens)))

    def system(self, *, ridge: float, weight: float, text: Self | None = None) -> "ExactSystem":
        system = weight * self.moment.mean()
        if text is not None:
            system.add_(text.moment.mean(), alpha=TEXT_WEIGHT * weight)
        system.diagonal().add_(ridge)
        return ExactSystem(torch.linalg.cholesky(system))


@dataclass(frozen=True, slots=True)
class ExactSystem:
    """``M = L L'``, by its Cholesky factor ``(d_in, d_in)``."""

    lower: Tensor

    def through(self, keys: Tensor, features: Features) -> tuple[Tensor, Tensor]:
        half = torch.linalg.solve_triangular(self.lower, features.whole(keys).double().T, upper=False)
        solved = torch.linalg.solve_triangular(self.lower.T, half, upper=True)
        return features.held(solved.T), features.broadcast(half.T @ half)


@dataclass(frozen=True, slots=True)
class SketchRidge:
    """Sketch form.

    Attributes:
        count: Tokens so far.
        directions: ``(up to rank, held)`` float64, ``B``.
        squares: ``(held,)`` float64, the exact diagonal of the sum of ``k k'``.
        rank: Directions at the most.
    """

    count: int
    directions: Tensor
    squares: Tensor
    rank: int

    @classmethod
    def empty(cls, num_held: int, rank: int, device: torch.device | str = "cpu") -> "SketchRidge":
        zeros = torch.zeros(num_held, dtype=torch.float64, device=device)
        return cls(0, zeros.new_zeros(0, num_held), zeros, rank)

    def update(self, tokens: Tensor, features: Features) -> "SketchRidge":
        directions = self.directions
        for block in tokens.double().split(self.rank):
            directions = _shrink(torch.cat((directions, block)), self.rank, features)
        return SketchRidge(self.count + len(tokens), directions, self.squares + tokens.double().square().sum(0), self.rank)

    def system(self, *, ridge: float, weight: float, text: Self | None = None) -> "SketchSystem":
        directions, residual = self._scaled(weight)
        if text is not None:
            more, rest = text._scaled(TEXT_WEIGHT * weight)
            directions, residual = torch.cat((directions, more)), residual + rest
        return SketchSystem(directions, ridge + residual)

    def _scaled(self, weight: float) -> tuple[Tensor, Tensor]:
        """``V`` and ``w D / N``."""
        scale = weight / max(1, self.count)
        return scale**0.5 * self.directions, scale * (self.squares - self.directions.square().sum(0)).clamp(min=0)


@dataclass(frozen=True, slots=True)
class SketchSystem:
    """``M = E + V'V``, by ``V`` ``(up to twice the rank, held)`` and the diagonal of ``E`` ``(held,)``."""

    directions: Tensor
    diagonal: Tensor

    def through(self, keys: Tensor, features: Features) -> tuple[Tensor, Tensor]:
        stacked = torch.cat((self.directions, keys.double()))
        gram, rank = features.gram(stacked / self.diagonal.sqrt()), len(self.directions)
        system = gram[:rank, :rank].clone()
        system.diagonal().add_(1.0)
        back = torch.cholesky_solve(gram[:rank, rank:], torch.linalg.cholesky(system))
        solved = (stacked[rank:] - back.T @ stacked[:rank]) / self.diagonal
        return solved, gram[rank:, rank:] - gram[rank:, :rank] @ back


def _shrink(rows: Tensor, rank: int, features: Features) -> Tensor:
    """One step of frequent directions: ``B`` of at most ``rank`` rows with ``B'B <= A'A`` for rows ``A``, the largest directions kept.

    All of them lose what the largest lost one had. So ``B`` changes little where ``A`` does, and rounding stays rounding.
    """
    if len(rows) <= rank:
        return rows
    values, vectors = torch.linalg.eigh(features.gram(rows))  # ascending
    values, vectors = values.flip(0), vectors.flip(1)[:, :rank]
    noise = values[0] * len(rows) * torch.finfo(values.dtype).eps
    kept, lost = values[:rank], values[rank].clamp(min=0)
    factors = torch.where(kept > noise, ((kept - lost) / kept.clamp(min=noise)).clamp(min=0).sqrt(), 0)
    return features.broadcast(factors.unsqueeze(1) * vectors.T) @ rows


def is_exact(form: PreserveForm, num_features: int) -> bool:
    """Whether keys of so many features are kept in the exact form."""
    return form == "exact" or (form == "auto" and num_features <= _MAX_EXACT)


def begin(form: PreserveForm, features: Features, rank: int, device: torch.device | str = "cpu") -> PreservingRidge:
    """Nothing seen yet, in the form asked for. It does not depend on how the model is cut."""
    if is_exact(form, features.num_features):
        return ExactRidge(SecondMoment.empty(features.num_features, device))
    return SketchRidge.empty(features.num_held, rank, device)
