"""The output side of the preserving ridge: a shift is held back more where the model's predictions depend on the output it changes.

The preserving ridge (:mod:`editing.method.preserve`) knows which keys come along. It holds back every direction of a module's output
alike, though other text is sensitive to some of them and hardly to others. How sensitive, the gradients ``g`` of that text's own loss at
the module's outputs tell. With their second moment on the one side and the ridge on the other, what is held back is the Kronecker product
of both, as in K-FAC (Martens, Grosse 2015), which CrispEdit (arXiv 2602.15823) uses to tell the directions that cost nothing:

    H = (1 - m) I + m d_out mean(g g') / tr mean(g g')          (d_out, d_out), eigenvalues h, at least 0.4, vectors U
    S = argmin ||K S - T||^2 + tr(M S H S')                     M (d_in, d_in) of the preserving ridge, K (n, d_in), T (n, d_out)
      = M^-1 K' R,   R u_j = (K M^-1 K' + h_j I)^-1 T u_j       = M^-1 K' V ((V'T U) / (s_i + h_j)) U'

    s, V   eigenvalues and vectors of K M^-1 K' (n, n)          m    preserve_outputs, 0 for the ridge alone

Directions that the text's rows hardly touch keep some of the ridge, :data:`LEAST`: nothing else bounds the weights there, and with less
they grow (docs/LOG.md, "A floor for the output side"). There are fewer rows than a wide module has outputs, so ``H`` is kept as the
directions that they span, ``U (r, d_out)``, and one value for all others; ``d_out x d_out`` never exists.

``H`` is of the unedited model and does not change. Where outputs are sliced over shards the gradients and ``T`` travel, a few rows each.

Differences from the published implementation
    * It has no preserving ridge and no output side. Off by default.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from editing.method.features import Features
from editing.method.shift import Shift

LEAST = 0.4
"""Share of the ridge that no direction falls below."""


@dataclass(frozen=True, slots=True)
class OutputSide:
    """``H`` of one module.

    Attributes:
        values: ``(r,)`` float64, ``h`` of the directions.
        directions: ``(r, d_out)`` float64, orthonormal rows, whole on every shard.
        rest: ``h`` of everything else.
    """

    values: Tensor
    directions: Tensor
    rest: float

    @classmethod
    def of_gradients(cls, gradients: Tensor, share: float, features: Features) -> "OutputSide":
        """Of value gradients ``(t, held)`` of a text.

        Args:
            gradients: One row a token.
            share: ``m``, from 0 to below 1.
            features: The module's value gradients, of which this worker may hold a slice.

        Raises:
            torch.linalg.LinAlgError: Some gradient is not finite.
        """
        whole = features.all_gather(gradients).double()
        if len(whole) < features.num_features:
            squares, vectors = torch.linalg.eigh(whole @ whole.T)
            kept = squares > squares.sum() * len(whole) * torch.finfo(squares.dtype).eps
            squares = squares[kept]
            directions = (vectors[:, kept].T @ whole) / squares.sqrt().unsqueeze(1)
        else:
            squares, vectors = torch.linalg.eigh(whole.T @ whole)
            directions = vectors.T
        squares = squares.clamp(min=0)
        scaled = squares * (features.num_features / squares.sum().clamp(min=torch.finfo(squares.dtype).tiny))
        values = (1 - share + share * scaled).clamp(min=LEAST)
        return cls(features.broadcast(values), features.broadcast(directions.contiguous()), max(LEAST, 1 - share))

    def solve(self, left: Tensor, gram: Tensor, targets: Tensor, features: Features) -> Shift:
        """The shift, or the shard's slice of it.

        Args:
            left: ``(M^-1 K')'`` ``(n, held keys)``.
            gram: ``K M^-1 K'`` ``(n, n)`` float64.
            targets: ``T (n, held values)``.
            features: The module's values, of which this worker may hold a slice.

        Raises:
            torch.linalg.LinAlgError: Some key is not finite.
        """
        spectrum, vectors = torch.linalg.eigh(gram)
        spectrum = spectrum.clamp(min=0).unsqueeze(1)
        turned = vectors.T @ features.all_gather(targets).double()
        along = turned @ self.directions.T
        solved = turned / (spectrum + self.rest) + (along / (spectrum + self.values) - along / (spectrum + self.rest)) @ self.directions
        right = features.slice(features.broadcast(vectors @ solved))
        return Shift(left.to(targets.dtype).T, right.to(targets.dtype), (spectrum[-1, 0] + self.rest) / (spectrum[0, 0] + self.rest))
