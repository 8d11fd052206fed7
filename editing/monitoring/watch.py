"""A small sample of applied edits, measured every few turns: the first to show that a model forgets or breaks.

The sample is drawn uniformly from all edits applied so far (reservoir sampling, Vitter 1985), seeded. The prefix of its
members is run once, at the first measurement after they have joined, and the unedited model asked for its answers then;
so a further measurement costs one pass of a few sequences through the suffix.
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
        """Let applied edits take their chance to join the sample."""
        seats: dict[int, TokenizedEdit] = {}
        for edit in edits:
            seat = self._offered if self._offered < self._size else self._random.randrange(self._offered + 1)
            self._offered += 1
            if seat < self._size:
                seats[seat] = edit
        for seat, edit in seats.items():
            self._members[seat : seat + 1] = [_Member(edit)]  # seats are filled in order first, so this appends or replaces

    def measure(self) -> dict[str, float | None]:
        """Mean metrics of the sample with the model as it is now; empty if there is no sample yet."""
        return summarize(self.results()) if self._members else {}

    def results(self) -> list[EditResult]:
        """Metrics of each member."""
        self._seat([member for member in self._members if member.prefixed is None])
        edits = [member.edit for member in self._members]
        prefixed = Prefixed.join([member.prefixed for member in self._members if member.prefixed])
        after = predict_prefixed(self._editor, probe_sequences(edits)[0], prefixed, len(edits))
        return score(edits, after, [member.before or {} for member in self._members])

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs to draw and measure the same sample, as plain JSON values."""
        version, internal, gauss = self._random.getstate()
        members = [
            {"request": asdict(m.edit.request), "record": m.edit.record, "before": m.before and {k: list(v) for k, v in m.before.items()}}
            for m in self._members
        ]
        return {"offered": self._offered, "random": [version, list(internal), gauss], "members": members}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a stored state."""
        version, internal, gauss = state["random"]
        self._random.setstate((version, tuple(internal), gauss))
        self._offered = state["offered"]
        editor, stored = self._editor, state["members"]
        edits = [tokenize(editor.joiner, EditRequest(**m["request"]), max_tokens=editor.decoder.max_tokens, record=m["record"]) for m in stored]
        before = [m["before"] and {probe: tuple(tokens) for probe, tokens in m["before"].items()} for m in stored]
        self._members = [_Member(edit, answers) for edit, answers in zip(edits, before, strict=True)]

    def _seat(self, members: list["_Member"]) -> None:
        """Run the prefix of members that have joined since the last measurement, and ask the unedited model what it would say."""
        if not members:
            return
        editor, edits = self._editor, [member.edit for member in members]
        owners, prefixed = run_probe_prefix(editor.decoder, edits, editor.start, editor.config.batch_tokens)
        for k, member in enumerate(members):
            member.prefixed = prefixed.select([j for j, (i, _) in enumerate(owners) if i == k]).detached()
        if all(member.before is not None for member in members):
            return
        with editor.unedited():
            answers = predict_prefixed(editor, owners, prefixed, len(edits))
        for member, before in zip(members, answers, strict=True):
            member.before = member.before or before


@dataclass(slots=True)
class _Member:
    """An edit of the sample; once it has been measured, the unedited model's answers to its probes and their prefix."""

    edit: TokenizedEdit
    before: dict[str, tuple[int, ...]] | None = None
    prefixed: Prefixed | None = None
