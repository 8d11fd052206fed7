"""The search for solved targets over a turn: residuals at the subjects are put in place, captured, and moved until the answers lead.

    first capture --gradients--> step --residuals--> capture (subject modules, edits not settled yet) --gradients--> step ...

The residuals and every decision are the same on all workers: rows are gathered after each capture, and which edits have settled is the first
worker's word. Each step sends the rows of the edits that are not settled, ``d_in + d_out`` numbers a module and edit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from editing.config import EditorConfig
from editing.method.residuals import ResidualSteps, leads_for_sure
from editing.method.rows import TurnRows
from editing.model.row_positions import row_owners, row_positions
from editing.sharding.collectives import Collectives
from editing.turn import PreparedTurn
from editing.turn_capture import TurnCapture


@dataclass(frozen=True, slots=True)
class SolvedTargets:
    """What a search has found.

    Attributes:
        rows: The turn's rows, with residuals and the keys that belong to them.
        num_settled: Edits whose answer leads by the margin with their residuals in place.
    """

    rows: TurnRows
    num_settled: int


def solve_targets(prepared: PreparedTurn, rows: TurnRows, capture: TurnCapture, config: EditorConfig, collectives: Collectives) -> SolvedTargets:
    """Find the residuals of a turn.

    Args:
        prepared: The turn.
        rows: Its rows, captured with the weights as they are.
        capture: Captures the turn with residuals in place.
        config: Steps, margin and bound.
        collectives: How all workers decide alike.

    Raises:
        TurnRefused: A loss or a gradient is not finite.
    """
    sequences = prepared.turn.sequences
    owners = row_owners(sequences)["answer"]
    searches = {name: ResidualSteps(outputs, config.subject_bound) for name, outputs in rows.outputs.items()}
    keys = {name: rows.keys[name].clone() for name in searches}
    gradients = {name: rows.value_gradients[name] for name in searches}
    with_subject = [i for i, sequence in enumerate(sequences) if sequence.subject is not None]
    active = _not_yet(with_subject, owners, ~leads_for_sure(rows.losses, config.subject_margin), len(sequences), collectives)
    places = row_positions(active, sequences)["subject"]
    gradients = {name: held[places.to(held.device)] for name, held in gradients.items()}
    for _ in range(config.subject_steps):
        if not active:
            break
        for name, search in searches.items():
            search.step(places.to(search.residuals.device), gradients[name])
        in_place = {name: search.residuals[places.to(search.residuals.device)] for name, search in searches.items()}
        found = capture(prepared, active, residuals=in_place, margin=config.subject_margin)
        for name, held in keys.items():
            held[places.to(held.device)] = found.keys[name]
        pending = torch.zeros(len(owners), dtype=torch.bool, device=found.pending.device)
        pending[row_positions(active, sequences)["answer"].to(pending.device)] = found.pending
        still = _not_yet(active, owners, pending, len(sequences), collectives)
        kept = torch.tensor([i in set(still) for i in active], dtype=torch.bool)
        gradients = {name: held[kept.to(held.device)] for name, held in found.value_gradients.items()}
        active, places = still, places[kept]
    residuals = {name: search.residuals for name, search in searches.items()}
    return SolvedTargets(replace(rows, keys=rows.keys | keys, residuals=residuals), len(with_subject) - len(active))


def _not_yet(edits: Sequence[int], owners: Tensor, pending: Tensor, num_edits: int, collectives: Collectives) -> list[int]:
    """Those of the edits that have a pending row; the first worker's word."""
    counts = torch.zeros(num_edits).index_add_(0, owners, pending.float().cpu())
    counts = collectives.broadcast(counts.to(pending.device))
    return [i for i in edits if counts[i] > 0]
