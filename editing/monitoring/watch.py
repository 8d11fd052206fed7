"""A small sample of applied edits, measured every few turns: an early sign that a model forgets or breaks.

The sample is drawn uniformly from all edits applied so far, with a seed (reservoir sampling, Vitter 1985). At the first measurement
after an edit has joined, its probes go through the prefix and through the unedited model, once. Further measurements cost one
pass of a few sequences through the suffix.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from editing.editor import Editor
from editing.model.prefix import Prefixed
from editing.monitoring.evaluation import EditResult, predict_prefixed, probe_sequences, run_probe_prefix, score, summarize
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
        """Draw whether each of these applied edits joins the sample, and in whose place."""
        seats: dict[int, TokenizedEdit] = {}
        for edit in edits:
            seat = self._offered if self._offered < self._size else self._random.randrange(self._offered + 1)
            self._offered += 1
            if seat < self._size:
                seats[seat] = edit
        for seat, edit in seats.items():
            self._members[seat : seat + 1] = [_Member(edit)]  # seats are filled in order first, so this appends or replaces

    def measure(self) -> dict[str, float | None]:
        """Mean metrics of the sample with the model as it is now; empty before the first edit."""
        return summarize(self.results()) if self._members else {}

    def results(self) -> list[EditResult]:
        """Metrics of each edit of the sample."""
        self._run_new([member for member in self._members if member.prefixed is None])
        edits = [member.edit for member in self._members]
        prefixed = Prefixed.concatenate([member.prefixed for member in self._members if member.prefixed])
        after = predict_prefixed(self._editor, probe_sequences(edits)[0], prefixed, len(edits))
        return score(edits, after, [member.before or {} for member in self._members])

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs to draw and measure the same sample, as plain JSON values."""
        version, internal, gauss = self._random.getstate()
        members = [
            {"request": asdict(m.edit.request), "record": m.edit.record, "before": m.before and {k: list(v) for k, v in m.before.items()}}
            for m in self._members
        ]
        return {"offered": self._offered, "random": [version, list(internal), gauss], "members": members}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a stored state."""
        version, internal, gauss = state["random"]
        self._random.setstate((version, tuple(internal), gauss))
        self._offered = state["offered"]
        editor, stored = self._editor, state["members"]
        edits = [tokenize(editor.joiner, EditRequest(**m["request"]), max_tokens=editor.decoder.max_tokens, record=m["record"]) for m in stored]
        before = [m["before"] and {probe: tuple(tokens) for probe, tokens in m["before"].items()} for m in stored]
        self._members = [_Member(edit, answers) for edit, answers in zip(edits, before, strict=True)]

    def _run_new(self, members: list["_Member"]) -> None:
        """Run the prefix, and the unedited model, over members that have joined since the last measurement."""
        if not members:
            return
        editor, edits = self._editor, [member.edit for member in members]
        owners, prefixed = run_probe_prefix(editor.decoder, edits, editor.start, editor.config.batch_tokens)
        for k, member in enumerate(members):
            member.prefixed = prefixed.select([j for j, (i, _) in enumerate(owners) if i == k]).copied()
        if all(member.before is not None for member in members):
            return
        with editor.unedited():
            answers = predict_prefixed(editor, owners, prefixed, len(edits))
        for member, before in zip(members, answers, strict=True):
            member.before = member.before or before


@dataclass(slots=True)
class _Member:
    """An edit of the sample; once measured, with the unedited model's answers to its probes and with their prefix."""

    edit: TokenizedEdit
    before: dict[str, tuple[int, ...]] | None = None
    prefixed: Prefixed | None = None
