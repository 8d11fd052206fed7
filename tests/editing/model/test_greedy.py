"""Greedy text is greedy: whatever a model's settings for serving say, in memory and streamed alike, and with any tokenizer."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from editing import Editor
from editing.memory.budget import Work
from editing.memory.loading import load_planned, plan_within
from editing.model.generation import generate
from editing.model.joining import Joiner
from tests.support.paths import PARITY

PROMPTS = ["Diego de Landa has the position of", "The capital of Kiribati is", "a", "In 1906 they"]
SERVING = {
    "repetition_penalty": {"repetition_penalty": 1.8},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "min_new_tokens": {"min_new_tokens": 8},
    "suppress_tokens": {"suppress_tokens": list(range(3, 300))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(3, 300))},
    "bad_words_ids": {"bad_words_ids": [[i] for i in range(3, 300)]},
    "forced_eos_token_id": {"forced_eos_token_id": 1},
    "sampling": {"do_sample": True, "temperature": 9.0, "top_k": 3, "top_p": 0.5},
    "beams": {"num_beams": 4, "length_penalty": 3.0},
    "stop_strings": {"stop_strings": ["e"]},
    "max_length": {"max_length": 3},
}


@pytest.fixture
def editor(llama_tiny: Path) -> Editor:
    return Editor.from_pretrained(llama_tiny / "model", modules=["model.layers.2.mlp.up_proj"], learning_rate=0.1)


def by_hand(editor: Editor, prompt: str, count: int) -> str:
    """The likeliest token, one after the other."""
    ids = editor.tokenizer(prompt)["input_ids"]
    written: list[int] = []
    with torch.no_grad():
        while len(written) < count:
            token = int(editor.model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax())
            if token == 1:
                break
            written.append(token)
    return str(editor.tokenizer.decode(written, skip_special_tokens=True))


def first_token(editor: Editor, prompt: str) -> int:
    with torch.no_grad():
        return int(editor.model(input_ids=torch.tensor([editor.tokenizer(prompt)["input_ids"]])).logits[0, -1].argmax())


@pytest.mark.parametrize("name", SERVING)
def test_a_models_settings_for_serving_do_not_change_greedy_text(name: str, editor: Editor) -> None:
    editor.model.generation_config = kept = GenerationConfig(eos_token_id=1, bos_token_id=0, **SERVING[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = generate(editor.decoder, editor.tokenizer, PROMPTS, max_new_tokens=10)
    assert written == [by_hand(editor, prompt, 10) for prompt in PROMPTS]
    assert editor.model.generation_config is kept  # it is saved with the model, and is for serving


@pytest.mark.parametrize("name", SERVING)
def test_text_of_a_model_whose_layers_lie_on_disk_is_the_same(name: str, editor: Editor, llama_tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama_tiny / "model", folder)
    (folder / "generation_config.json").write_text(GenerationConfig(eos_token_id=1, bos_token_id=0, **SERVING[name]).to_json_string())
    plan = replace(plan_within(folder, 2**30, Work(batch_tokens=64, edits_per_turn=6, process=0), choose=lambda _: ()), streamed=2)
    loaded = load_planned(folder, plan, choose=lambda _: (), device=torch.device("cpu"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            written = generate(loaded.decoder, editor.tokenizer, PROMPTS, max_new_tokens=10)
    finally:
        loaded.close()
    assert written == [by_hand(editor, prompt, 10) for prompt in PROMPTS]


def test_settings_for_serving_stay_with_the_model_and_are_saved_with_it(tmp_path: Path) -> None:
    shutil.copytree(PARITY / "llama-tiny" / "model", tmp_path / "base")
    GenerationConfig(eos_token_id=1, bos_token_id=0, repetition_penalty=1.8).save_pretrained(tmp_path / "base")
    editor = Editor.from_pretrained(tmp_path / "base", modules=["layers.1.mlp.up_proj"], learning_rate=1e-3, device="cpu")
    generate(editor.decoder, editor.tokenizer, PROMPTS, max_new_tokens=2)
    assert editor.model.generation_config.repetition_penalty == 1.8
    editor.save(tmp_path / "edited")
    assert GenerationConfig.from_pretrained(tmp_path / "edited").repetition_penalty == 1.8


def test_what_is_written_after_the_end_is_no_text(editor: Editor) -> None:
    first = [first_token(editor, prompt) for prompt in PROMPTS]
    editor.model.generation_config = GenerationConfig(eos_token_id=first[0])  # an ordinary token, which decoding would not leave out
    written = generate(editor.decoder, editor.tokenizer, PROMPTS, max_new_tokens=6)
    assert written[0] == ""
    assert [bool(text) for text in written] == [token != first[0] for token in first]


@pytest.mark.parametrize("pad", ["<pad>", None])
def test_a_pad_without_an_embedding_is_never_fed(pad: str | None, editor: Editor) -> None:
    tokenizer = AutoTokenizer.from_pretrained(PARITY / "llama-tiny" / "model")
    if pad:
        tokenizer.add_special_tokens({"pad_token": pad})
        assert len(tokenizer) > editor.model.config.vocab_size
    editor.model.generation_config = GenerationConfig(eos_token_id=first_token(editor, PROMPTS[1]))
    assert generate(editor.decoder, tokenizer, PROMPTS, max_new_tokens=6) == generate(editor.decoder, editor.tokenizer, PROMPTS, max_new_tokens=6)


def test_a_prompt_is_read_as_typed_before_text_is_written(editor: Editor) -> None:
    expected = generate(editor.decoder, editor.tokenizer, PROMPTS, max_new_tokens=6)
    typed = [f" {prompt}  " for prompt in PROMPTS]
    for join in ("raw", "published", "none"):
        assert generate(editor.decoder, Joiner(editor.tokenizer, join), typed, max_new_tokens=6) == expected  # type: ignore[arg-type]
