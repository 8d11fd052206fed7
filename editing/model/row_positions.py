"""Positions of rows and tokens, when those of all sequences of a turn are laid end to end.

sequences     0        1      2
rows        a a a      a     a a          sequence 2 has rows 4 and 5; row 3 belongs to sequence 1
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from editing.method.rows import SITES, Site
from editing.model.tokenization import AnswerSequence, row_offsets, token_offsets


def row_positions(chosen: Sequence[int], sequences: Sequence[AnswerSequence]) -> dict[Site, Tensor]:
    """Positions of the rows of chosen sequences among those of all, at each site."""
    return {site: _ranges(chosen, row_offsets(sequences, site)) for site in SITES}


def token_positions(chosen: Sequence[int], sequences: Sequence[AnswerSequence]) -> Tensor:
    """Positions of the tokens of chosen sequences among those of all."""
    return _ranges(chosen, token_offsets(sequences))


def row_owners(sequences: Sequence[AnswerSequence]) -> dict[Site, Tensor]:
    """The sequence of each row, at each site."""
    counts = {site: torch.tensor([len(sequence.rows(site)) for sequence in sequences], dtype=torch.int64) for site in SITES}
    return {site: torch.arange(len(sequences)).repeat_interleave(count) for site, count in counts.items()}


def _ranges(chosen: Sequence[int], offsets: Sequence[int]) -> Tensor:
    """The numbers from ``offsets[i]`` up to ``offsets[i + 1]`` of each chosen ``i``."""
    return torch.tensor([number for i in chosen for number in range(offsets[i], offsets[i + 1])], dtype=torch.int64)
