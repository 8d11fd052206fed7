"""Retrieval in place of editing: the facts that fit a prompt best stand before it; no weight changes.

Facts are ranked by BM25 (Robertson et al. 1994; k1 1.5, b 0.75) over words without capitals:

    score = sum over the prompt's words of idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length / mean length))
    idf   = ln(1 + (N - n + 0.5) / (n + 0.5))          n facts of N have the word
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from editing.turn import TokenizedEdit
from tests.benchmarks.peer_bench import Ask, Bench

_WORD = re.compile(r"\w+")
_K1, _B = 1.5, 0.75


def retrieval(_bench: Bench, edits: Sequence[TokenizedEdit], *, facts: int = 1, at_least: float = 0.0) -> Ask:
    """Put up to ``facts`` facts, each with a score above ``at_least``, before a prompt; the best stands last, beside the prompt."""
    index = Bm25([f"{edit.request.prompt} {edit.request.target}." for edit in edits])

    def ask(prompt: str) -> str:
        best = [fact for score, fact in index.best(prompt, facts) if score > at_least]
        return "\n".join([*reversed(best), prompt])

    return ask


class Bm25:
    """Texts that can be searched.

    Args:
        texts: The texts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = list(texts)
        self._words = [Counter(_words(text)) for text in texts]
        self._containing = Counter(word for words in self._words for word in words)
        self._mean_length = sum(words.total() for words in self._words) / len(texts)

    def best(self, query: str, count: int) -> list[tuple[float, str]]:
        """The best texts with their scores, the best first."""
        asked = _words(query)
        scores = [(self._score(asked, words), text) for words, text in zip(self._words, self._texts, strict=True)]
        return sorted(scores, key=lambda pair: -pair[0])[:count]

    def _score(self, asked: Sequence[str], words: Counter[str]) -> float:
        length = _K1 * (1 - _B + _B * words.total() / self._mean_length)
        return sum(self._idf(word) * words[word] * (_K1 + 1) / (words[word] + length) for word in asked if words[word])

    def _idf(self, word: str) -> float:
        n = self._containing[word]
        return math.log(1 + (len(self._texts) - n + 0.5) / (n + 0.5))


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]
