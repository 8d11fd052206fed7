"""A model whose layers are read when a pass comes to them is edited to the same bits as one that is in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from editing import Editor, EditRequest, budgeted, pretrained
from editing.budget import Work
from editing.budgeted import Budgeted
from editing.evaluation import evaluate
from editing.turn import tokenize
from tests.workers.models import TINY, TinyModel

CPU = torch.device("cpu")
WORK = Work(batch_tokens=64, edits_per_turn=6, process=0)
REQUESTS = [
    EditRequest(prompt=f"The {'very ' * (i % 4)}big colour of number {i} is", target=f"blue {i}", rephrase=f"Number {i} has", locality_prompt="So it")
    for i in range(14)
]


@contextmanager
def streamed(folder: Path, modules: tuple[str, ...], layers: int, *, dtype: pretrained.DTypeName = "auto", limit: int = 2**20) -> Iterator[Budgeted]:
    """The model with just so many layers left on disk."""
    plan = budgeted.plan_within(folder, 2**30, WORK, choose=lambda _: modules, dtype=dtype)
    plan = replace(plan, streamed=layers, hidden_limit=limit)
    loaded = budgeted.load_planned(folder, plan, choose=lambda _: modules, device=CPU, dtype=dtype)
    try:
        yield loaded
    finally:
        loaded.close()


def edited(model: object, tokenizer: object, modules: tuple[str, ...], **given: object) -> Editor:
    config = {"edits_per_turn": 6, "group_size": 4, "batch_tokens": 64, "learning_rate": 1e-3}
    editor = Editor.of_loaded(model, tokenizer, "tiny", modules=modules, **config, **given)
    editor.apply(REQUESTS, lookahead=2)
    return editor


def measured(editor: Editor) -> list[object]:
    return evaluate(editor, [tokenize(editor.tokenizer, request, max_tokens=None) for request in REQUESTS])


def check_same_bits(folder: Path, modules: tuple[str, ...], layers: int, *, dtype: pretrained.DTypeName = "auto", **given: int) -> None:
    expected = edited(*pretrained.load(folder, device=CPU, dtype=dtype), modules)
    with streamed(folder, modules, layers, dtype=dtype, **given) as loaded:
        found = edited(loaded.model, pretrained.load_tokenizer(folder), modules, decoder=loaded.decoder, originals=loaded.originals)
        assert found.turns == expected.turns == 3
        assert found.digests() == expected.digests()
        assert measured(found) == measured(expected)


@pytest.mark.parametrize("layers", [1, 3, 4])
@pytest.mark.parametrize("model", TINY, ids=lambda m: m.name)
def test_streaming_gives_the_same_bits(model: TinyModel, layers: int, tmp_path: Path) -> None:
    model.write(tmp_path)
    check_same_bits(tmp_path, model.modules, layers)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gemma3_text", "llama"])
def test_any_precision_streams(name: str, dtype: pretrained.DTypeName, tmp_path: Path) -> None:
    model = next(m for m in TINY if m.name == name)
    model.write(tmp_path)
    check_same_bits(tmp_path, model.modules, 3, dtype=dtype)


def test_hidden_states_past_the_limit_wait_on_disk(tmp_path: Path) -> None:
    model = next(m for m in TINY if m.name == "llama")
    model.write(tmp_path)
    check_same_bits(tmp_path, model.modules, 3, limit=5000)
