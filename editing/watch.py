"""A small sample of applied edits, measured after every turn: the first to show that a model forgets or breaks.

The sample is drawn uniformly from all edits applied so far (reservoir sampling, Vitter 1985), seeded. The prefix of its
members is run once, and the unedited model's answers are taken when a member joins, so a measurement costs one pass of
a few sequences through the suffix.
"""

import random
from collections.abc import Sequence

import torch

from editing.editor import Editor
from editing.evaluation import EditResult, Predictions, predict_prefixed, probe_sequences, run_probe_prefix, score, summarize
from editing.prefix import Prefixed
from editing.turn import TokenizedEdit


class Watch:
    """Metrics of a fixed-size sample of the edits applied so far.

    Args:
        editor: The editor whose edits are watched.
        size: Number of edits in the sample; 0 watches nothing.
        seed: Seed of the sample.
    """

    def __init__(self, editor: Editor, *, size: int = 20, seed: int = 0) -> None:
        self._editor = editor
        self._size = size
        self._random = random.Random(seed)
        self._offered = 0
        self._edits: list[TokenizedEdit] = []
        self._prefixed: list[Prefixed] = []
        self._before: Predictions = []

    def offer(self, edits: Sequence[TokenizedEdit]) -> None:
        """Let applied edits take their chance to join the sample."""
        joined: dict[int, TokenizedEdit] = {}
        for edit in edits:
            self._offered += 1
            seats = len(self._edits) + sum(seat >= len(self._edits) for seat in joined)
            seat = seats if seats < self._size else self._random.randrange(self._offered)
            if seat < self._size:
                joined[seat] = edit
        if joined:
            self._seat(joined)

    def measure(self) -> dict[str, float | None]:
        """Mean metrics of the sample with the model as it is now."""
        if not self._edits:
            return {}
        return summarize(self.results())

    def results(self) -> list[EditResult]:
        """Metrics of each member."""
        owners = probe_sequences(self._edits)[0]
        hidden = None if self._prefixed[0].hidden is None else [h for p in self._prefixed for h in p.hidden or ()]
        prefixed = Prefixed([s for p in self._prefixed for s in p.sequences], hidden)
        return score(self._edits, predict_prefixed(self._editor, owners, prefixed, len(self._edits)), self._before)

    def _seat(self, joined: dict[int, TokenizedEdit]) -> None:
        editor, edits = self._editor, list(joined.values())
        owners, prefixed = run_probe_prefix(editor.decoder, edits, editor.start, editor.config.batch_tokens)
        with editor.unedited(), torch.no_grad():
            before = predict_prefixed(editor, owners, prefixed, len(edits))
        for k, (seat, edit) in enumerate(joined.items()):
            own = prefixed.part([j for j, (i, _) in enumerate(owners) if i == k])
            if own.hidden is not None:
                own = Prefixed(own.sequences, [h.clone() for h in own.hidden])  # not a view of a large batch
            member = (edit, own, before[k])
            for column, value in zip((self._edits, self._prefixed, self._before), member, strict=True):
                column[seat : seat + 1] = [value]  # appends where the seat is the next free one
