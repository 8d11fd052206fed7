"""Beginnings that many sequences share, as chats in one template do: layers run them once, and the rest of each sequence after them.

    chats of SmolLM2    24 tokens of the template and its system message | 11 of "The capital of Samoa is" and what follows it
                        once for all of a turn's chats                     of each

Decoders are causal, so what layers make of a beginning does not depend on what follows.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from editing.model.past import Kept, Past, Seen
from editing.model.tokenization import AnswerSequence, Batch
from editing.ranges import consecutive

_SHORTEST = 16
"""Tokens that a beginning has at least. Prompts as they are typed hardly ever share as many."""

_FEWEST = 4
"""Sequences that share a beginning, at least."""


class Beginning:
    """A beginning while a pass over layers is made: it runs before what follows it, in each segment of layers.

    Args:
        sequence: Its tokens.
    """

    def __init__(self, sequence: AnswerSequence) -> None:
        self.sequence = sequence
        self._kept = Cache(layer_class_to_replicate=Kept)

    def arguments(self, _body: Any, _width: int) -> dict[str, Any]:
        """Arguments of a run of the beginning itself, which nothing precedes: its keys and values are kept until its next run."""
        self._kept = Cache(layer_class_to_replicate=Kept)
        return {"past_key_values": self._kept}

    def past(self, batch_size: int) -> Past:
        """What a batch of sequences after it attends to, in the layers of its last run."""
        ran = [layer for layer in self._kept.layers if layer.is_initialized]
        layers = [(layer.keys.expand(batch_size, -1, -1, -1), layer.values.expand(batch_size, -1, -1, -1)) for layer in ran]
        lengths = torch.full((batch_size,), len(self.sequence.input_ids), device=layers[0][0].device)
        return Past(layers, lengths, len(self._kept.layers) - len(layers))


@dataclass(frozen=True, slots=True)
class After:
    """What precedes a batch: a beginning, as its last run left it."""

    beginning: Beginning
    batch_size: int

    def arguments(self, body: Any, width: int) -> dict[str, Any]:
        """Further arguments of a decoder's body that runs ``width`` tokens after it."""
        return self.beginning.past(self.batch_size).arguments(body, width, Seen)


@dataclass(frozen=True, slots=True)
class Part:
    """Sequences that share batches, and what they begin with.

    Attributes:
        members: Which sequences these are.
        beginning: What they share, if they do.
    """

    members: Sequence[int]
    beginning: Beginning | None = None

    @property
    def length(self) -> int:
        """Tokens that are shared."""
        return len(self.beginning.sequence.input_ids) if self.beginning else 0


def whole(sequences: Sequence[AnswerSequence], apart: Sequence[int] | None = None) -> list[Part]:
    """Parts that share nothing.

    Args:
        sequences: The sequences.
        apart: Lengths of consecutive parts of the sequences; by default one. The last bits of a matrix product's row depend on how many
            rows there are, so what a part gives, such as a turn, does not depend on the others.
    """
    return [Part(part) for part in consecutive(apart or [len(sequences)])]


def shared(sequences: Sequence[AnswerSequence], apart: Sequence[int] | None = None) -> list[Part]:
    """Parts by what sequences share before their rows.

    Args:
        sequences: The sequences.
        apart: As for :func:`whole`; what is in two of these parts shares nothing.
    """
    return [part for one in whole(sequences, apart) for part in _alike(sequences, one.members)]


def _alike(sequences: Sequence[AnswerSequence], members: Sequence[int]) -> list[Part]:
    """First those that share nothing with enough others."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i in members:
        if sequences[i].num_before_rows >= _SHORTEST:  # one with an early row would leave the others nothing to share
            groups[sequences[i].input_ids[:_SHORTEST]].append(i)
    several = [group for group in groups.values() if len(group) >= _FEWEST]
    taken = {i for group in several for i in group}
    rest = [i for i in members if i not in taken]
    lengths = [_common([sequences[i] for i in group]) for group in several]
    beginnings = [Beginning(AnswerSequence(sequences[group[0]].input_ids[:n], (0,))) for group, n in zip(several, lengths, strict=True)]
    return [Part(rest)] * bool(rest) + list(map(Part, several, beginnings))


def beginning_batch(beginning: Beginning, starts: Sequence[int], device: torch.device) -> Batch:
    """A batch of a beginning alone. It has no rows; each of its tokens is one of every sequence that begins so.

    Args:
        beginning: The beginning.
        starts: Numbers of the first tokens of these sequences.
        device: Where the batch goes.
    """
    ids, places = beginning.sequence.input_ids, range(len(beginning.sequence.input_ids))
    numbers = torch.tensor([*ids, *[*places] * len(starts), *(start + place for start in starts for place in places)]).to(device)
    input_ids, tokens, token_ids = numbers.split([len(ids), len(ids) * len(starts), len(ids) * len(starts)])
    none = numbers[:0]
    return Batch((), input_ids.unsqueeze(0), none, none, none, none, none, tokens, token_ids, beginning)


def _common(several: Sequence[AnswerSequence]) -> int:
    """Tokens that sequences begin with alike, before the first row of each."""
    texts = [sequence.input_ids for sequence in several]
    first, last = min(texts), max(texts)
    same = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return min(same, *(sequence.num_before_rows for sequence in several))
