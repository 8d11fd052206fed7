"""Solved targets: by how much a module's output at a subject has to change for the answer to be the model's own.

One gradient step at the subject points the way and does not arrive; a *solved* value does, and a rephrased prompt finds it (Meng et al.
2022, ROME and MEMIT; docs/LOG.md, "Solved targets"). The residual ``d`` of each edit is added to the output at the subject's last
token, no weight changes, and ``d`` takes steps down the loss of the answer until the answer leads by the margin:

    d <- d - a m / (sqrt(v) + e)                    Adam (Kingma, Ba 2015), each edit by itself         (s, d_out)
    ||d|| <= b u                                    projected after each step

    m, v   running means of the gradient and of its square       u   mean norm of the module's outputs at the turn's subjects
    b      subject_bound                                         a   b u / (4 sqrt(d_out)): four equal steps reach the bound

An edit that has settled takes no further step, so its residual is hardly larger than it must be. The targets of the solve are then
``T = d``, with the keys that the module sees while the residuals of the modules below it are in place.

What is written must be remembered by the solve, or later turns undo it. Beside the reference text, the ridge therefore holds the sum of
``k k'`` over the keys of all earlier edits, each at its full weight:

    S = argmin ||K S - T||^2 + sum_earlier ||k S||^2 + w (mean_text ||k S||^2) + r ||S||^2

which is recursive least squares: after any number of turns the weights are those of one ridge regression over all edits together, as
long as the keys stay what they were. They do where a module has no edited module below it.

Differences from the published implementation
    * It has no solved targets. Off by default.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from editing.errors import InputError
from editing.method.rows import Site
from editing.sharding.shards import LinearShard

STEPS_TO_BOUND = 4
_BETAS = 0.9, 0.999


class ResidualSteps:
    """Residuals of one module in one turn, on their way.

    Args:
        outputs: ``(s, d_out)`` the module's outputs at the subjects.
        bound: Largest norm of a residual, as a share of the outputs' mean norm.

    Attributes:
        residuals: ``(s, d_out)`` float32, as they are by now; 0 at first.
    """

    def __init__(self, outputs: Tensor, bound: float) -> None:
        self.residuals = torch.zeros_like(outputs)
        self._means, self._squares = torch.zeros_like(outputs), torch.zeros_like(outputs)
        self._steps = torch.zeros(len(outputs), 1, dtype=torch.float64, device=outputs.device)
        self._bound = bound * float(outputs.norm(dim=1).mean()) if len(outputs) else 0.0

    def step(self, rows: Tensor, gradients: Tensor) -> None:
        """One step of chosen rows.

        Args:
            rows: ``(c,)`` their numbers.
            gradients: ``(c, d_out)`` gradients of the loss at their outputs, with the residuals in place.
        """
        beta, gamma = _BETAS
        self._steps[rows] += 1
        count = self._steps[rows]
        self._means[rows] = mean = beta * self._means[rows] + (1 - beta) * gradients
        self._squares[rows] = square = gamma * self._squares[rows] + (1 - gamma) * gradients.square()
        direction = mean.double() / (1 - beta**count) / ((square.double() / (1 - gamma**count)).sqrt() + torch.finfo(torch.float32).tiny)
        length = self._bound / (STEPS_TO_BOUND * math.sqrt(gradients.shape[1]))
        moved = self.residuals[rows] - length * direction.float()
        self.residuals[rows] = moved * (self._bound / moved.norm(dim=1, keepdim=True).clamp(min=self._bound or 1.0))


def leads_for_sure(losses: Tensor, margin: float) -> Tensor:
    """``(n,)`` bool: rows whose token leads every other by the margin whatever these are, as their loss alone tells.

    A token of probability ``p`` leads by at least ``log p - log(1 - p)``.
    """
    return losses <= math.log1p(math.exp(-margin))


def check_outputs(shards: Mapping[str, LinearShard], sites: Mapping[str, Site]) -> None:
    """Refuse modules whose outputs no single worker sees: those that a cluster cuts along their outputs.

    Raises:
        InputError: Names the first such module.
    """
    for name, shard in shards.items():
        if shard.axis == "values" and sites.get(name) == "subject":
            raise InputError(f"subject_modules: {name} is cut along its outputs, and targets are solved there as a whole; choose down_proj or o_proj")
