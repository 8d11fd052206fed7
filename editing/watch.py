"""A small sample of applied edits, measured every few turns: the first to show that a model forgets or breaks.

The sample is drawn uniformly from all edits applied so far (reservoir sampling, Vitter 1985), seeded. The prefix of its
members is run once, and the unedited model's answers are taken when a member joins, so a measurement costs one pass of
a few sequences through the suffix.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from editing.editor import Editor
from editing.evaluation import EditResult, Predictions, predict_prefixed, probe_sequences, run_probe_prefix, score, summarize
from editing.prefix import Prefixed
from editing.requests import EditRequest
from editing.turn import TokenizedEdit, tokenize


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
        self._members: list[_Member] = []

    def offer(self, edits: Sequence[TokenizedEdit]) -> None:
        """Let applied edits take their chance to join the sample."""
        seats: dict[int, TokenizedEdit] = {}
        for edit in edits:
            seat = self._offered if self._offered < self._size else self._random.randrange(self._offered + 1)
            self._offered += 1
            if seat < self._size:
                seats[seat] = edit
        for seat, member in zip(seats, self._seat(list(seats.values()), None), strict=True):
            self._members[seat : seat + 1] = [member]  # seats are filled in order first, so this appends or replaces

    def measure(self) -> dict[str, float | None]:
        """Mean metrics of the sample with the model as it is now; empty if there is no sample yet."""
        return summarize(self.results()) if self._members else {}

    def results(self) -> list[EditResult]:
        """Metrics of each member."""
        edits = [member.edit for member in self._members]
        sequences = [s for member in self._members for s in member.prefixed.sequences]
        hidden = [h for member in self._members for h in member.prefixed.hidden or ()]
        prefixed = Prefixed(sequences, hidden or None)
        after = predict_prefixed(self._editor, probe_sequences(edits)[0], prefixed, len(edits))
        return score(edits, after, [member.before for member in self._members])

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs to draw and measure the same sample, as plain JSON values."""
        version, internal, gauss = self._random.getstate()
        members = [
            {"request": asdict(m.edit.request), "record": m.edit.record, "before": {k: list(v) for k, v in m.before.items()}} for m in self._members
        ]
        return {"offered": self._offered, "random": [version, list(internal), gauss], "members": members}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a stored state."""
        version, internal, gauss = state["random"]
        self._random.setstate((version, tuple(internal), gauss))
        self._offered = state["offered"]
        editor, stored = self._editor, state["members"]
        edits = [tokenize(editor.tokenizer, EditRequest(**m["request"]), max_tokens=editor.decoder.max_tokens, record=m["record"]) for m in stored]
        before = [{probe: tuple(tokens) for probe, tokens in m["before"].items()} for m in stored]
        self._members = self._seat(edits, before)

    def _seat(self, edits: list[TokenizedEdit], before: Predictions | None) -> list["_Member"]:
        """Members with their prefix; the unedited model is asked where its answers are not given."""
        if not edits:
            return []
        editor = self._editor
        owners, prefixed = run_probe_prefix(editor.decoder, edits, editor.start, editor.config.batch_tokens)
        if before is None:
            with editor.unedited():
                before = predict_prefixed(editor, owners, prefixed, len(edits))
        own = [prefixed.part([j for j, (i, _) in enumerate(owners) if i == k]) for k in range(len(edits))]
        return [_Member(edit, part.detached(), answers) for edit, part, answers in zip(edits, own, before, strict=True)]


@dataclass(frozen=True, slots=True)
class _Member:
    """An edit of the sample, its probes' prefix, and the unedited model's answers to them."""

    edit: TokenizedEdit
    prefixed: Prefixed
    before: dict[str, tuple[int, ...]]
