"""Capture of a turn over replicas: each runs its own groups, and all get all rows.

turn --groups dealt to replicas--> this replica's sequences --suffix forward and back--> its rows
     --all-gather over the replicas--> all rows of the turn, in the turn's order --> finite, or the turn is refused
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from editing.config import EditorConfig
from editing.errors import TurnRefused
from editing.method.rows import SITES, Site, TurnRows
from editing.model.capture import capture, group_weights
from editing.model.continuation import Continued, can_continue
from editing.model.decoder import Decoder
from editing.model.prefix import LayerInputs, batches_of, parts_of
from editing.model.row_positions import row_owners, row_positions, token_positions
from editing.sharding.collectives import Collectives
from editing.turn import PreparedTurn, Turn


class TurnCapture:
    """Captures turns of one editor.

    Args:
        decoder: The model.
        modules: The edited modules by name.
        sites: At which rows each of them is edited.
        start: First layer of the suffix.
        config: Group size, batch size and margin.
        collectives: How the replicas' rows come together. All workers capture the same turns in the same order.
    """

    def __init__(
        self,
        decoder: Decoder,
        modules: Mapping[str, nn.Linear],
        sites: Mapping[str, Site],
        start: int,
        config: EditorConfig,
        collectives: Collectives,
    ) -> None:
        self._decoder, self._modules, self._sites, self._start = decoder, modules, sites, start
        self.config, self._collectives = config, collectives

    def __call__(
        self,
        prepared: PreparedTurn,
        chosen: Sequence[int] | None = None,
        *,
        tokens: bool = False,
        residuals: Mapping[str, Tensor] | None = None,
        margin: float | None = None,
    ) -> TurnRows:
        """All rows of a turn, or of chosen sequences of it, with the model's weights as they are now.

        Args:
            prepared: The turn.
            chosen: Positions of sequences in the turn; by default all of them.
            tokens: Also capture the keys of all tokens.
            residuals: By module, what is added to its output at each row of the chosen sequences; then only these modules are captured.
            margin: Lead below which a row is pending; by default the configuration's.

        Raises:
            TurnRefused: A loss, a key or a gradient is not finite. Raised on every worker.
        """
        turn, config = prepared.turn, self.config
        weights = group_weights([len(s.answer_ids) for s in turn.sequences], config.group_size)
        if chosen is not None:
            weights = weights[row_positions(chosen, turn.sequences)["answer"]]
            prepared = prepared.only(chosen, self._collectives.replica)
        rows = self._run(prepared, weights, tokens, residuals or {}, config.margin if margin is None else margin)
        sequences = prepared.turn.sequences
        not_finite = self._collectives.all_reduce_sum(rows.count_not_finite(row_owners(sequences), len(sequences)))
        _check_finite(not_finite == 0, prepared.turn)
        return rows

    def from_subjects(self, prepared: PreparedTurn) -> PreparedTurn:
        """The turn for runs in which nothing changes before its subjects: these begin there, if the model allows it.

        Sequences without a subject run as a whole. Where the suffix is read from disk for each run, all of them do.
        """
        in_memory = self._decoder.residency.holds(self._start, self._decoder.num_layers)
        if not (in_memory and can_continue(self._decoder, self._start)):
            return prepared
        continued = Continued.at_subjects(self._decoder, prepared.prefixed, start=self._start, batch_tokens=self.config.batch_tokens)
        return replace(prepared, continued=continued)

    def _run(self, prepared: PreparedTurn, weights: Tensor, tokens: bool, residuals: Mapping[str, Tensor], margin: float) -> TurnRows:
        """Capture this replica's share, and gather the rows of all replicas."""
        config, replica, sequences = self.config, self._collectives.replica, prepared.turn.sequences
        positions = [row_positions(share, sequences) for share in prepared.shares]
        of_tokens = [token_positions(share, sequences) for share in prepared.shares]
        own = positions[replica]["subject"]
        own_rows = own.to(self._decoder.device) if residuals else own
        captured = capture(
            self._decoder,
            {name: module for name, module in self._modules.items() if name in residuals or not residuals},
            self._batches(prepared),
            weights[positions[replica]["answer"]],
            start=self._start,
            sites=self._sites,
            num_subjects=len(own),
            batch_tokens=config.batch_tokens,
            margin=margin,
            num_tokens=len(of_tokens[replica]) if tokens else None,
            outputs=() if residuals or not config.solves_targets else [name for name, site in self._sites.items() if site == "subject"],
            residuals={name: added[own_rows] for name, added in residuals.items()},
        )
        rows = captured.gathered(self._collectives, {site: [of_share[site] for of_share in positions] for site in SITES})
        return replace(rows, tokens={name: self._collectives.all_gather_rows(keys, of_tokens) for name, keys in captured.tokens.items()})

    def _batches(self, prepared: PreparedTurn) -> LayerInputs:
        """What this replica runs: its sequences from their subjects on, where that will do, or else those with a beginning in common after it."""
        sizes: Any = {"batch_tokens": self.config.batch_tokens, "device": self._decoder.device}
        if prepared.continued:
            return prepared.continued.batches(**sizes)
        parts = parts_of(self._decoder, prepared.prefixed.sequences, self._start, self._decoder.num_layers)
        return batches_of(prepared.prefixed, parts, **sizes)


def _check_finite(finite: Tensor, turn: Turn) -> None:
    """Refuse a turn unless all of its sequences that were captured are finite."""
    if finite.all():
        return
    bad = turn.edits_of(i for i, good in enumerate(finite.tolist()) if not good)
    culprits = tuple(sorted(turn.order[i] for i in bad))
    raise TurnRefused(f"loss or gradients of {len(culprits)} of its {len(turn.edits)} edits are not finite", culprits)
