"""The moment prior: scales for a model's first edits.

Keys and value gradients are normalized by the moments of all rows so far. A first turn of one or two edits has next to no deviations to
divide by: its targets come out several times too small and in a poor direction, and the model does not take the edits (docs/LOG.md, "One fact").
So forty statements that ship with the project, about things that no model knows, are captured in the unedited model, and their moments fill up
those of the edits:

    rows of the edits so far    0      1     50      n >= prior
    rows of the prior         prior  p - 1  p - 50   0

With a first turn of a hundred edits there is nothing to fill up, and none of this runs. The statements are written nowhere.

Differences from the published implementation
    * It has no prior. Off by default.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from editing.errors import InvalidRequest
from editing.method.lifelong import LifelongStatistics
from editing.method.rows import Site
from editing.model.joining import Joiner
from editing.requests import EditRequest
from editing.sharding.shards import LinearShard, Shape
from editing.turn import TokenizedEdit, Turn, tokenize

FULL_TURN = 100
"""Edits of the turn whose strength is meant where a first turn of few edits is to find a learning rate. Shifts of edits point alike: at one rate
that of 100 facts of the demo is 2.6 and 1.9 times as long as that of the 40 statements (Gemma 3 270M, SmolLM2-135M)."""


@dataclass(frozen=True, slots=True)
class MomentPrior:
    """The statements, as a turn.

    Attributes:
        turn: The statements that a model has room for, tokenized as edits are.
        counts: Rows of each module shape at each site, all modules together.
    """

    turn: Turn
    counts: Mapping[tuple[Site, Shape], int]

    @classmethod
    def of(cls, joiner: Joiner, max_tokens: int | None, shards: Mapping[str, LinearShard], sites: Mapping[str, Site]) -> "MomentPrior":
        """The prior of a model.

        Args:
            joiner: Turns prompts and answers into its tokens.
            max_tokens: The model's context length, or ``None`` for no limit.
            shards: What this worker holds of each edited module.
            sites: Where each module is edited.
        """
        turn = Turn.of([edit for request in read_statements() for edit in _tokenized(joiner, request, max_tokens)])
        counts: Counter[tuple[Site, Shape]] = Counter()
        for name, shard in shards.items():
            counts[sites[name], shard.shape] += sum(len(sequence.rows(sites[name])) for sequence in turn.sequences)
        return cls(turn, counts)

    def is_wanted(self, statistics: LifelongStatistics) -> bool:
        """Whether some moments are of fewer rows than the statements have."""
        return any(shape in statistics.at(site) and statistics.at(site)[shape].count < count for (site, shape), count in self.counts.items())


def read_statements() -> list[EditRequest]:
    """The statements that ship with the project."""
    lines = (resources.files("editing.probes") / "statements.jsonl").read_text(encoding="utf-8").splitlines()
    return [EditRequest(**json.loads(line)) for line in lines]


def _tokenized(joiner: Joiner, request: EditRequest, max_tokens: int | None) -> list[TokenizedEdit]:
    """A statement; nothing if the model has no tokens or no room for it."""
    try:
        return [tokenize(joiner, request, max_tokens=max_tokens)]
    except InvalidRequest:
        return []
