"""A model whose layers are read when a pass comes to them is edited to the same bits as one that is in memory."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from editing import Editor, EditRequest, InputError, ModelError
from editing.files import pretrained
from editing.files.reader import WeightReader
from editing.memory import loading as budgeted
from editing.memory.budget import MemoryPlan, Work, parse_size
from editing.memory.loading import BudgetedModel
from editing.model.decoder import Decoder
from editing.model.generation import generate
from editing.model.prefix import Prefixed, log_likelihoods, run_prefix
from editing.model.tokenization import encode
from editing.monitoring.evaluation import evaluate
from editing.turn import tokenize
from tests.support.small_editor import LONG_FRAMING
from tests.support.tiny_models import GPT2, TINY, TinyModel

CPU = torch.device("cpu")
WORK = Work(batch_tokens=64, edits_per_turn=6, process=0)
REQUESTS = [
    EditRequest(
        prompt=f"The {'very ' * (i % 4)}big colour of number {i} is",
        target=f"blue {i}",
        subject=f"number {i}" if i % 5 else None,
        rephrase=f"Number {i} has",
        locality_prompt="So it",
    )
    for i in range(14)
]


@contextmanager
def streamed(folder: Path, modules: tuple[str, ...], layers: int, *, dtype: pretrained.DTypeName = "auto", **given: Any) -> Iterator[BudgetedModel]:
    """The model with just so many layers left on disk."""
    device, pinned = torch.device(given.get("device", "cpu")), given.get("pinned", False)
    plan = budgeted.plan_within(folder, 2**30, WORK, choose=lambda _: modules, dtype=dtype)
    plan = replace(plan, streamed=layers, hidden_limit=given.get("limit", 2**20))
    loaded = budgeted.load_planned(folder, plan, choose=lambda _: modules, device=device, dtype=dtype, pinned=pinned)
    try:
        yield loaded
    finally:
        loaded.close()


def edited(model: object, tokenizer: object, modules: tuple[str, ...], **given: object) -> Editor:
    config = {"edits_per_turn": 6, "group_size": 4, "batch_tokens": 64, "learning_rate": 1e-3}
    editor = Editor.of_loaded(model, tokenizer, "tiny", modules=modules, **{**config, **given})
    editor.apply(REQUESTS, lookahead=2)
    return editor


def measured(editor: Editor) -> list[object]:
    return evaluate(editor, [tokenize(editor.tokenizer, request, max_tokens=None) for request in REQUESTS])


def check_same_bits(
    folder: Path,
    modules: tuple[str, ...],
    layers: int,
    *,
    dtype: pretrained.DTypeName = "auto",
    options: dict[str, Any] | None = None,
    **given: Any,
) -> None:
    options = options or {}
    device = torch.device(given.get("device", "cpu"))
    expected = edited(*pretrained.load(folder, device=device, dtype=dtype), modules, **options)
    with streamed(folder, (*modules, *options.get("subject_modules", ())), layers, dtype=dtype, **given) as loaded:
        found = edited(loaded.model, pretrained.load_tokenizer(folder), modules, decoder=loaded.decoder, originals=loaded.originals, **options)
        assert found.turns == expected.turns == 3
        assert found.digests() == expected.digests()
        assert measured(found) == measured(expected)


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        pytest.param(model, layers, id=f"{model.name}-layers={layers}", marks=[] if layers == 3 or model.name == "llama" else pytest.mark.thorough)
        for model in (*TINY, GPT2)
        for layers in (1, 3, 4)
    ],
)
def test_streaming_gives_the_same_bits(model: TinyModel, layers: int, tmp_path: Path) -> None:
    model.write(tmp_path)
    check_same_bits(tmp_path, model.modules, layers)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gemma3_text", "llama"])
def test_any_precision_streams(name: str, dtype: pretrained.DTypeName, tmp_path: Path) -> None:
    model = next(m for m in TINY if m.name == name)
    model.write(tmp_path)
    check_same_bits(tmp_path, model.modules, 3, dtype=dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("layers", [3, 4])
def test_a_gpu_streams_through_pinned_memory(layers: int, pinned: bool, tmp_path: Path) -> None:
    model = next(m for m in TINY if m.name == "llama")
    model.write(tmp_path)
    check_same_bits(tmp_path, model.modules, layers, device="cuda", pinned=pinned)


LLAMA = next(m for m in TINY if m.name == "llama")
PREFIX_MODULES = ("model.layers.3.mlp.down_proj",)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    LLAMA.write(folder)
    return folder


def prefixed(loaded: BudgetedModel, stop: int = 3) -> Prefixed:
    tokenizer = pretrained.load_tokenizer(loaded.reader.files.folder)
    sequences = [encode(tokenizer, request.prompt, request.target) for request in REQUESTS]
    return run_prefix(loaded.decoder, sequences, stop=stop, batch_tokens=64)


def test_hidden_states_past_the_limit_wait_on_disk(llama: Path) -> None:
    check_same_bits(llama, LLAMA.modules, 3, limit=5000)
    with streamed(llama, PREFIX_MODULES, 3) as roomy, streamed(llama, PREFIX_MODULES, 3, limit=5000) as tight:
        plenty, little = prefixed(roomy), prefixed(tight)
        assert plenty.hidden.num_on_disk == 0
        assert 0 < little.hidden.num_on_disk < len(REQUESTS)
        assert all(torch.equal(plenty.hidden.get(i), little.hidden.get(i)) for i in range(len(REQUESTS)))


def test_one_pass_reads_every_streamed_weight_once(llama: Path) -> None:
    with streamed(llama, PREFIX_MODULES, 3) as loaded:
        files, lower = loaded.reader.files, tuple(f"model.layers.{i}." for i in range(3))
        layers = sum(files.stored(name).nbytes for name in files.shapes if name.startswith(lower))
        for slot in loaded.decoder.residency._slots:
            slot.wait()  # for what the checks at loading have begun to read
            slot.layer = None
        before = loaded.reader.bytes_read
        run = prefixed(loaded)
        rows = loaded.reader.bytes_read - before - layers
        assert run.hidden is not None
        tokens = sum(len(s.input_ids) for s in run.sequences)
        assert 0 < rows <= tokens * 32 * 4  # the embeddings of the tokens that are there, and nothing else


def test_log_likelihoods_stream(llama: Path) -> None:
    model, tokenizer = pretrained.load(llama, device=CPU)
    sequences = Prefixed([encode(tokenizer, request.prompt, request.target) for request in REQUESTS], None)
    expected = log_likelihoods(Decoder(model), sequences, start=0, batch_tokens=64)
    with streamed(llama, LLAMA.modules, 3) as loaded:
        assert log_likelihoods(loaded.decoder, sequences, start=0, batch_tokens=64) == expected
    assert len({nats for nats, _ in expected}) > 5


def test_the_next_layer_is_read_while_one_computes(llama: Path) -> None:
    with streamed(llama, PREFIX_MODULES, 3) as loaded:
        stream = loaded.decoder.residency
        with closing(stream.segments(0, 3)) as segments:
            assert next(segments) == range(1)
            assert {slot.layer for slot in stream._slots} == {0, 1}
            assert next(segments) == range(1, 2)
            assert {slot.layer for slot in stream._slots} == {1, 2}


def test_a_layer_that_is_not_in_place_cannot_compute(llama: Path) -> None:
    with streamed(llama, PREFIX_MODULES, 3) as loaded, pytest.raises((RuntimeError, NotImplementedError)):
        loaded.model(input_ids=torch.tensor([[3, 4, 5]]))


@pytest.mark.parametrize("change", ["cut short", "written anew"])
def test_a_file_changed_under_the_run_is_an_error_and_no_turn_is_applied(change: str, llama: Path) -> None:
    tokenizer = pretrained.load_tokenizer(llama)
    with streamed(llama, LLAMA.modules, 3) as loaded:
        editor = edited(loaded.model, tokenizer, LLAMA.modules, decoder=loaded.decoder, originals=loaded.originals)
        digests = editor.digests()
        for path in llama.glob("*.safetensors"):
            content = path.read_bytes()
            path.write_bytes(content[:-100] if change == "cut short" else content)
        with pytest.raises(ModelError, match="has changed while it was in use"):
            editor.apply(REQUESTS)
        assert editor.digests() == digests
        assert editor.turns == 3


def test_a_file_that_is_replaced_is_still_read_as_it_was_and_not_copied(llama: Path) -> None:
    expected = edited(*pretrained.load(llama, device=CPU), LLAMA.modules)
    tokenizer = pretrained.load_tokenizer(llama)
    with streamed(llama, LLAMA.modules, 3) as loaded:
        for path in llama.glob("*.safetensors"):
            other = path.with_suffix(".new")
            other.write_bytes(bytes(path.stat().st_size))
            other.rename(path)
        found = edited(loaded.model, tokenizer, LLAMA.modules, decoder=loaded.decoder, originals=loaded.originals)
        assert found.digests() == expected.digests()
        with pytest.raises(ModelError, match="has been replaced"):
            loaded.reader.check_in_place()


def test_a_disk_that_fills_is_one_line_and_the_model_stays_as_it_was(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real device without room: its every write fails as on a full disk."""
    with streamed(llama, PREFIX_MODULES, 3, limit=0) as loaded:
        editor = Editor.of_loaded(
            loaded.model,
            pretrained.load_tokenizer(llama),
            "tiny",
            modules=PREFIX_MODULES,
            learning_rate=1e-3,
            decoder=loaded.decoder,
            originals=loaded.originals,
        )
        digests = editor.digests()
        monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: open("/dev/full", "w+b", buffering=0))  # noqa: SIM115
        with pytest.raises(InputError, match=r"could not be written .No space left on device.*TMPDIR"):
            editor.apply(REQUESTS)
        assert editor.digests() == digests


def test_a_slow_disk_makes_a_slower_run_only(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = WeightReader.read

    def slowly(self: WeightReader, name: str, target: torch.Tensor) -> None:
        time.sleep(0.01)
        read(self, name, target)

    monkeypatch.setattr(WeightReader, "read", slowly)
    check_same_bits(llama, LLAMA.modules, 3)


def test_generated_text_is_the_same(llama: Path) -> None:
    prompts = [request.prompt for request in REQUESTS]
    model, tokenizer = pretrained.load(llama, device=CPU)
    with streamed(llama, LLAMA.modules, 3) as loaded:
        expected = generate(Decoder(model), tokenizer, prompts, max_new_tokens=7)
        assert generate(loaded.decoder, tokenizer, prompts, max_new_tokens=7) == expected
        assert len(set(expected)) > 3


def test_a_budget_that_is_too_small_names_the_smallest_that_works(llama: Path) -> None:
    def plan(budget: int) -> MemoryPlan:
        return budgeted.plan_within(llama, budget, WORK, choose=lambda _: LLAMA.modules)

    with pytest.raises(InputError, match="too little for this model; the smallest that works is 1MiB: head and norms"):
        plan(100_000)
    assert plan(2**20).budget == 2**20


@pytest.mark.parametrize(("text", "size"), [("6GiB", 6 * 2**30), ("800MB", 800_000_000), ("1.5 GiB", 3 * 2**29), ("5e9", 5 * 10**9), ("auto", None)])
def test_sizes_are_read_as_people_write_them(text: str, size: int | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "six", "6 apples", "-1GiB", "0", "GiB", "1.2.3GB"])
def test_what_is_no_size_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="device_memory: expected a size like 6GiB"):
        parse_size(text)


@pytest.mark.parametrize("form", ["exact", pytest.param("sketch", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("small_turns", [False, pytest.param(True, id="small turns")])
def test_passes_and_a_preserving_ridge_stream(form: str, small_turns: bool, tmp_path: Path) -> None:
    model = next(m for m in TINY if m.name == "llama")
    model.write(tmp_path)
    preserving = {"preserve": form, "preserve_rank": 8, "preserve_weight": 30.0, "preserve_text": "everyday"}
    check_same_bits(tmp_path, model.modules, 3, options={"passes": 3, "small_turns": small_turns, "preserve_neighbours": 3, **preserving})


@pytest.mark.parametrize("layers", [1, 3])
def test_modules_edited_at_the_subject_stream(layers: int, tmp_path: Path) -> None:
    model = next(m for m in TINY if m.name == "llama")
    model.write(tmp_path)
    check_same_bits(tmp_path, model.modules, layers, options={"passes": 2, "subject_modules": ("model.layers.{0,1}.mlp.up_proj",)})


@pytest.mark.parametrize("layers", [1, 3])
def test_what_chats_begin_with_streams_too(layers: int, llama: Path) -> None:
    framed = {"framings": ("raw", LONG_FRAMING), "batch_tokens": 256, "preserve": "exact", "preserve_neighbours": 2, "preserve_alike": True}
    framed |= {"preserve_text": "everyday", "preserve_outputs": 0.5}
    editor = edited(*pretrained.load(llama, device=CPU), LLAMA.modules, **framed)
    assert editor.decoder.shares[range(editor.start)]
    check_same_bits(llama, LLAMA.modules, layers, options=framed)
