"""A decoder as lm-evaluation-harness asks for a model. Needs the harness."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from editing.config import DEFAULT_BATCH_TOKENS
from editing.errors import InputError
from editing.model.decoder import Decoder
from editing.model.generation import write
from editing.model.prefix import Prefixed, log_likelihoods
from editing.model.tokenization import AnswerSequence

_DEFAULT_TOKENS = 256
"""Tokens that are written where a task does not say how many."""

_DEFAULT_WINDOW = 2048
"""Tokens of a window where a model has no context length."""


class HarnessModel(TemplateLM):  # type: ignore[misc]  # types are checked without the harness
    """The three questions of the harness, answered in batches by length.

    Args:
        decoder: Runs the model.
        tokenizer: Its tokenizer; texts are encoded as it does by default, with a first token where the model expects one.
    """

    def __init__(self, decoder: Decoder, tokenizer: Any) -> None:
        super().__init__()
        self._decoder, self.tokenizer = decoder, tokenizer

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        found: int = self.tokenizer.eos_token_id
        return found

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing is before."""
        first: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else first

    @property
    def _window(self) -> int:
        return self._decoder.max_tokens or _DEFAULT_WINDOW

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text."""
        ids: list[int] = self.tokenizer(string, add_special_tokens=add_special_tokens is not False)["input_ids"]
        return ids

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability in nats of each continuation after its context, and whether it is the greedy one."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[tuple[float, bool]]:
        """Of a continuation that is longer than the context length its end is scored, and of what is before it what there is room for."""
        sequences = []
        for _texts, before, continuation in requests:
            ids = [*before, *continuation][-(self._window + 1) :]
            sequences.append(AnswerSequence(tuple(ids[:-1]), tuple(continuation[-(len(ids) - 1) :])))
        return log_likelihoods(self._decoder, Prefixed(sequences, None), start=0, batch_tokens=DEFAULT_BATCH_TOKENS)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of whole texts, in windows that do not overlap."""
        owners, windows = [], []
        for k, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for pair in get_rolling_token_windows(ids, self.prefix_token_id, self._window, 1):
                before, continuation = make_disjoint_window(pair)
                owners.append(k)
                windows.append((None, before, continuation))
        totals = [0.0] * len(requests)
        for k, (nats, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[k] += nats
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy texts, each up to the first of its ends.

        Raises:
            InputError: A task asks for samples.
        """
        texts = [""] * len(requests)
        for tokens in sorted({_tokens(request) for request in requests}):
            chosen = [k for k, request in enumerate(requests) if _tokens(request) == tokens]
            written = write(self._decoder, self.tokenizer, [requests[k].args[0] for k in chosen], max_new_tokens=tokens)
            for k, text in zip(chosen, written, strict=True):
                texts[k] = _until(text.text, requests[k].args[1].get("until") or [])
        return texts


def _tokens(request: Any) -> int:
    settings = request.args[1]
    if settings.get("do_sample") and settings.get("temperature", 1.0):
        raise InputError("tasks: a task asks for sampled text; texts are greedy here, so choose another")
    return int(settings.get("max_gen_toks") or _DEFAULT_TOKENS)


def _until(text: str, ends: str | Sequence[str]) -> str:
    places = [text.find(end) for end in ([ends] if isinstance(ends, str) else ends) if end]
    return text[: min((place for place in places if place >= 0), default=len(text))]
