"""Greedy text is greedy: whatever a model's generation settings say, in memory and streamed alike, and with any tokenizer."""

import warnings
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from editing import Editor
from editing.model.generation import generate

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


def settings(model_folder: Path, values: dict[str, object]) -> GenerationConfig:
    return GenerationConfig(**{"eos_token_id": 1, "bos_token_id": 0, **values})


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


@pytest.mark.parametrize("name", SERVING)
def test_a_models_settings_for_serving_do_not_change_greedy_text(name: str, editor: Editor) -> None:
    editor.model.generation_config = kept = GenerationConfig(eos_token_id=1, bos_token_id=0, **SERVING[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = generate(editor.decoder, editor.tokenizer, PROMPTS, max_new_tokens=10)
    assert written == [by_hand(editor, prompt, 10) for prompt in PROMPTS]
    assert editor.model.generation_config is kept  # it is saved with the model, and is for serving
