"""Sequences from their subjects on give what whole sequences give, wherever a past can be kept; elsewhere whole ones are run."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from editing import Editor
from editing.config import MethodOptions
from editing.memory.budget import Footprint, Work, memory_breakdown
from editing.method.rows import TurnRows
from editing.model.continuation import Continued, can_continue
from editing.model.decoder import Decoder
from editing.turn import PreparedTurn, Turn, tokenize
from tests.editing.model.test_architectures import SMALL, STATES, SUPPORTED, TOKENIZER, TOKENS
from tests.support.small_editor import editor, requests

SUBJECT_MODULES = ("model.layers.{0,2}.mlp.down_proj",)
WITH_STATES = ("bamba", "falcon h1", "falcon mamba", "granite 4", "jamba", "lfm 2", "mamba", "mamba 2", "nemotron h", "qwen 3 next")
WITH_STATES += ("recurrent gemma",)


def prepared(**options: Any) -> tuple[Editor, PreparedTurn]:
    given = {"subject_modules": SUBJECT_MODULES, "subject_targets": "solved", "preserve": "exact", "preserve_text": "everyday", **options}
    one = Editor.of_loaded(editor().model, editor().tokenizer, "tiny", modules=["model.layers.2.mlp.up_proj"], learning_rate=1e-3, **given)
    edits = [tokenize(one.joiner, request, max_tokens=None) for request in requests()]
    return one, one.prepare([Turn.of(edits)])[0]


def with_residuals(one: Editor, turn: PreparedTurn, residuals: dict[str, Tensor]) -> TurnRows:
    chosen = [i for i, sequence in enumerate(turn.turn.sequences) if sequence.subject is not None]
    return one.capture(turn, chosen, residuals=residuals, margin=0.5)


@pytest.mark.parametrize("batch_tokens", [2048, 24], ids=["one batch", "several"])
@pytest.mark.parametrize("first", [0, 1], ids=["from the embeddings", "from a prefix"])
def test_rows_from_the_subjects_on_are_those_of_whole_sequences(batch_tokens: int, first: int) -> None:
    one, turn = prepared(batch_tokens=batch_tokens, subject_modules=(f"model.layers.{{{first},2}}.mlp.down_proj",), framings=("raw", "question"))
    assert one.start == first
    generator = torch.Generator().manual_seed(0)
    count = sum(sequence.subject is not None for sequence in turn.turn.sequences)
    residuals = {n: torch.randn(count, one.shards[n].shape[1], generator=generator) for n, site in one.sites.items() if site == "subject"}
    whole, continued = with_residuals(one, turn, residuals), with_residuals(one, one.capture.from_subjects(turn), residuals)
    torch.testing.assert_close(continued.losses, whole.losses, rtol=1e-5, atol=1e-5)
    assert torch.equal(continued.pending, whole.pending)
    for name in residuals:
        torch.testing.assert_close(continued.keys[name], whole.keys[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(continued.value_gradients[name], whole.value_gradients[name], rtol=1e-4, atol=1e-7)


def test_only_what_follows_the_subject_is_run_again() -> None:
    one, turn = prepared()
    tails = one.capture.from_subjects(turn).continued
    assert tails is not None
    for sequence, tail in zip(turn.turn.sequences, tails.sequences, strict=True):
        assert tail.input_ids == sequence.input_ids[sequence.subject or 0 :]
        assert tail.answer_ids == sequence.answer_ids
    assert sum(len(tail.input_ids) for tail in tails.sequences) < 0.7 * sum(len(s.input_ids) for s in turn.turn.sequences)


@pytest.mark.parametrize("name", SUPPORTED)
def test_each_architecture_is_continued_or_known_to_keep_states(name: str) -> None:
    family, _, options = SUPPORTED[name]
    torch.manual_seed(0)
    decoder = Decoder(AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options)).eval())
    assert [can_continue(decoder, start) for start in (0, 2)] == [name not in WITH_STATES] * 2


def test_a_window_that_is_shorter_than_the_past_is_kept() -> None:
    torch.manual_seed(0)
    options = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3_text", **options)).eval()
    facts = [replace(request, prompt=f"It has been said for long that {request.prompt[0].lower()}{request.prompt[1:]}") for request in requests(4)]
    one = Editor.of_loaded(
        model,
        TOKENIZER,
        "tiny",
        modules=["model.layers.3.mlp.up_proj"],
        learning_rate=1e-3,
        subject_modules=SUBJECT_MODULES,
        subject_targets="solved",
        preserve="exact",
        preserve_text="everyday",
    )
    turn = one.prepare([Turn.of([tokenize(one.joiner, fact, max_tokens=None) for fact in facts])])[0]
    assert min(sequence.subject or 0 for sequence in turn.turn.sequences) > 4
    residuals = {n: torch.ones(4, 32) for n, site in one.sites.items() if site == "subject"}
    whole, continued = with_residuals(one, turn, residuals), with_residuals(one, one.capture.from_subjects(turn), residuals)
    torch.testing.assert_close(continued.losses, whole.losses, rtol=1e-5, atol=1e-5)


def test_a_model_with_states_runs_whole_sequences() -> None:
    torch.manual_seed(0)
    options = {**TOKENS, **STATES, "hidden_size": 32, "num_hidden_layers": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **options)).eval()
    one = Editor.of_loaded(model, TOKENIZER, "tiny", modules=["layers.2.mixer.out_proj"], learning_rate=1e-3)
    turn = one.prepare([Turn.of([tokenize(one.joiner, request, max_tokens=None) for request in requests(2)])])[0]
    assert one.capture.from_subjects(turn) is turn


def test_what_a_tail_attends_to_takes_no_gradient() -> None:
    one, turn = prepared()
    continued = Continued.at_subjects(one.decoder, turn.prefixed, start=one.start, batch_tokens=64)
    assert not any(keys.requires_grad or values.requires_grad for past in continued.pasts for keys, values in past)


def test_a_plan_counts_what_is_kept_where_the_suffix_stays_in_memory() -> None:
    one, turn = prepared(subject_modules=("model.layers.{1,2}.mlp.down_proj",))
    continued = Continued.at_subjects(one.decoder, turn.prefixed, start=one.start, batch_tokens=64)
    number = max(range(len(continued.pasts)), key=lambda i: int(continued.lengths[i]))
    bytes_kept = sum(part.numel() * part.element_size() for layer in continued.pasts[number] for part in layer)
    footprint = Footprint.of(one.decoder, one.modules, torch.float32)
    suffix = len(footprint.layers) - footprint.start
    assert bytes_kept == int(continued.lengths[number]) * footprint.kept * footprint.itemsize * suffix
    name, work = "keys and values before subjects", Work(batch_tokens=64, edits_per_turn=10, process=0, method=one.config)
    assert memory_breakdown(footprint, work, 1, False)[name] == 10 * 16 * footprint.kept * footprint.itemsize * suffix
    assert memory_breakdown(footprint, work, 2, False)[name] == 0  # read from disk for each run
    plain = replace(work, method=MethodOptions())
    assert memory_breakdown(footprint, plain, 1, False)[name] == 0
