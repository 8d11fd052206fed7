"""The passes of a turn: the first shifts, then further ones for rows that are still pending.

    pass 1    all rows                                          targets for all rows
    pass 2    captured again with the shifted weights, all sequences     targets for pending rows, 0 for the others
    pass 3 -  captured again, only sequences that had pending rows           the same

A row is pending while its answer token does not lead by the margin. Keys of rows that are not captured again have changed only
with the shifts below them, so they stay as captured. All passes use the lifelong statistics of the first one. The shifts of the
last pass are left to the commit.

Differences from the published implementation
    * It has one pass.
"""

import math
from collections.abc import Sequence

import torch

from editing.config import EditorConfig
from editing.edited_weights import EditedWeights
from editing.errors import TurnRefused
from editing.method.rows import Site, TurnRows
from editing.method.solver import Solution, TurnSolver
from editing.model.row_positions import row_owners, row_positions
from editing.sharding.collectives import Collectives
from editing.turn import PreparedTurn
from editing.turn_capture import TurnCapture


class TurnPasses:
    """Passes of one turn, in the order: :meth:`first`, :meth:`refine`, then the commit of :attr:`last`.

    Args:
        prepared: The turn.
        rows: Its rows, captured before the first shift.
        solver: Solves for the shifts.
        weights: The weights that are shifted.
        config: Number of passes.
        collectives: How all workers decide alike.

    Attributes:
        num_pending_rows: Pending rows before each pass.
    """

    def __init__(
        self, prepared: PreparedTurn, rows: TurnRows, solver: TurnSolver, weights: EditedWeights, config: EditorConfig, collectives: Collectives
    ) -> None:
        self._prepared, self._rows, self._solver, self._weights = prepared, rows, solver, weights
        self._config, self._collectives = config, collectives
        self._solutions: list[Solution] = []
        self.num_pending_rows: list[int] = []

    @property
    def last(self) -> Solution:
        """What the last pass has found, which is not in the weights yet."""
        return self._solutions[-1]

    def total(self) -> Solution:
        """What all passes add together."""
        return self._solver.total(self._solutions)

    def first(self) -> None:
        """Solve for all rows; where targets are solved, for the subjects and for the answers of edits without one.

        Raises:
            TurnRefused: A shift is not finite, or no weight would change.
        """
        self._solutions = [self._solver.solve(self._rows, self._first_sites())]
        self.num_pending_rows = [int(self._rows.pending.sum())]
        for name, norm in self.last.norms.items():
            if norm == 0 and self.last.shifts[name].left.shape[1]:
                raise TurnRefused(f"the shift of {name} is 0, so nothing would change")
        if not self._weights.would_change(self.last.shifts):
            dtype = str(self._weights.dtype).removeprefix("torch.")
            why = f"the model knows its edits, or the learning rate of {self._solver.rate:g} is too small"
            raise TurnRefused(f"its shifts are too small to change any {dtype} weight: {why}")

    def refine(self, capture: TurnCapture) -> None:
        """Add the shifts found so far to the weights, and find further ones until no row is pending or the passes are used up.

        Args:
            capture: Captures the turn with the weights as they are by then.

        Raises:
            TurnRefused: Something is not finite. The weights are those after the last pass that was added.
        """
        rows, sequences = self._rows, self._prepared.turn.sequences
        owners = row_owners(sequences)
        chosen: Sequence[int] = range(len(sequences))
        while len(self._solutions) < self._config.passes_of(len(self._prepared.turn.edits)):
            self._weights.add(self.last.shifts)
            rows = rows.updated(row_positions(chosen, sequences), capture(self._prepared, chosen))
            pending = self._collectives.broadcast(rows.pending.float())
            known = pending.cpu()
            self.num_pending_rows.append(int(known.sum()))
            open_ones = torch.zeros(len(sequences)).index_add_(0, owners["answer"], known).sign()
            chosen = [i for i in chosen if open_ones[i]]
            again = open_ones[owners["subject"]] * (not self._config.solves_targets)  # a solved target is written once
            at_sites: dict[Site, torch.Tensor] = {"answer": pending, "subject": again.to(pending.device)}
            self._solutions.append(self._within_first(self._solver.solve(rows, at_sites)) if chosen else Solution.empty())
            if not self._weights.would_change(self.last.shifts):
                return

    def _within_first(self, found: Solution) -> Solution:
        """With ``small_turns``: no longer than the first pass's shift, so that rows which pull against each other do not drive the weights away.

        Where targets are solved, the first pass writes at the subjects and the further ones at the answers: their lengths say nothing of each other.
        """
        first, length = (math.hypot(*solution.norms.values()) for solution in (self._solutions[0], found))
        return found.scaled(first / length) if self._config.small_turns and not self._config.solves_targets and length > first else found

    def _first_sites(self) -> dict[Site, torch.Tensor] | None:
        """Which rows get targets in the first pass: all of them, if ``None``."""
        if not self._config.solves_targets:
            return None
        sequences, device = self._prepared.turn.sequences, self._rows.losses.device
        owners = row_owners(sequences)
        without = torch.tensor([float(sequence.subject is None) for sequence in sequences])
        return {"answer": without[owners["answer"]].to(device), "subject": torch.ones(len(owners["subject"]), device=device)}
