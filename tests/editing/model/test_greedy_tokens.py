"""Texts that are written together are those of each prompt alone, one token after the other; a text that has ended is not run on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from editing.model import generation, greedy
from editing.model.decoder import Decoder
from editing.model.generation import write
from editing.model.greedy import greedy_tokens
from tests.editing.model.test_architectures import GROUPED, SMALL, SUPPORTED, TOKENIZER
from tests.editing.model.test_beginnings import CHATS, TYPED, model
from tests.editing.model.test_continuation import WITH_STATES

PROMPTS = [list(sequence.input_ids) for sequence in (*CHATS, *TYPED)]
"""Five that share a beginning of twenty tokens, five that share nothing, all of several lengths."""

APART = [PROMPTS[i] for i in (1, 2, 3, 5, 6, 7, 8)]
"""Without a beginning that runs by itself."""


def alone(decoder: Decoder, prompt: list[int], count: int, ends: frozenset[int] = frozenset()) -> list[int]:
    """The likeliest token, again and again, of whole sequences without a cache."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + count and not ends & set(ids[len(prompt) :]):
            ids.append(int(decoder.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def rows_run(decoder: Decoder, work: Callable[[], Any]) -> list[int]:
    """Rows of each single-token run."""
    counted: list[int] = []
    handle = decoder.layers[-1].register_forward_pre_hook(lambda _module, inputs: counted.append(len(inputs[0])) if inputs[0].shape[1] == 1 else None)
    work()
    handle.remove()
    return counted


@pytest.mark.parametrize("name", [name for name in SUPPORTED if name not in WITH_STATES])
def test_every_architecture_writes_after_many_prompts_what_it_writes_after_each(name: str) -> None:
    family, _, options = SUPPORTED[name]
    decoder = Decoder(model(family, **options))
    found = greedy_tokens(decoder, PROMPTS, max_new_tokens=6, ends=(), at_once=7)
    assert found == [alone(decoder, prompt, 6) for prompt in PROMPTS]


def test_a_window_of_attention_that_is_shorter_than_the_text_is_kept() -> None:
    decoder = Decoder(model("gemma3_text", **{**GROUPED, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2}))
    found = greedy_tokens(decoder, PROMPTS, max_new_tokens=12, ends=(), at_once=256)
    assert found == [alone(decoder, prompt, 12) for prompt in PROMPTS]


def test_a_text_that_has_ended_leaves_its_batch() -> None:
    decoder = Decoder(model("llama", **SMALL))
    ends = frozenset(alone(decoder, prompt, k + 1)[-1] for k, prompt in enumerate(APART[:4]))
    expected = [alone(decoder, prompt, 8, ends) for prompt in APART]
    found: list[list[int]] = []
    counted = rows_run(decoder, lambda: found.extend(greedy_tokens(decoder, APART, max_new_tokens=8, ends=ends, at_once=256)))
    assert found == expected
    assert counted == [count for k in range(1, 8) if (count := sum(len(tokens) > k for tokens in expected))]
    assert counted[0] > counted[-1]


@pytest.mark.parametrize("limit", ["at once", "bytes"])
def test_what_is_written_together_is_bounded(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(model("llama", **SMALL))
    longest = max(map(len, APART))
    if limit == "bytes":
        monkeypatch.setattr(greedy, "_MOST_BYTES", 3 * (longest + 5) * 4 * 2 * 32 * 4)  # of three of the longest, float32, four layers
    found: list[list[int]] = []
    at_once = 3 if limit == "at once" else 256
    counted = rows_run(decoder, lambda: found.extend(greedy_tokens(decoder, APART, max_new_tokens=5, ends=(), at_once=at_once)))
    assert found == [alone(decoder, prompt, 5) for prompt in APART]
    assert max(counted) == 3 if limit == "at once" else 3 <= max(counted) < len(APART)


def test_one_token_takes_no_further_run() -> None:
    decoder = Decoder(model("llama", **SMALL))
    assert greedy_tokens(decoder, PROMPTS, max_new_tokens=1, ends=(), at_once=256) == [alone(decoder, prompt, 1) for prompt in PROMPTS]
    assert rows_run(decoder, lambda: greedy_tokens(decoder, APART, max_new_tokens=1, ends=(), at_once=256)) == []
    assert greedy_tokens(decoder, [], max_new_tokens=3, ends=(), at_once=256) == []


@pytest.mark.parametrize("options", [{"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, {}], ids=["dynamic", "refuses"])
def test_a_model_that_cannot_be_continued_writes_by_its_own_means(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(model("llama", **SMALL, **options))
    if not options:
        decoder.continues[0] = False
    monkeypatch.setattr(generation, "greedy_tokens", None)
    prompts = ["Mars", "The capital of France is"]
    assert write(decoder, TOKENIZER, prompts, max_new_tokens=4) == [write(decoder, TOKENIZER, [prompt], max_new_tokens=4)[0] for prompt in prompts]
