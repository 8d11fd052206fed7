"""The peers are what their papers say, on cases solved by hand, and the comparison in small."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from editing.datasets import EditFile, NumberedRequest
from editing.files import pretrained
from editing.model.tokenization import AnswerSequence
from editing.requests import EditRequest
from editing.turn import TokenizedEdit, tokenize
from tests.benchmarks import peer_bench, peers
from tests.benchmarks.peer_bench import Bench, as_asked
from tests.benchmarks.peer_located import Values, _at_subjects, _variants, alphaedit, alphaedit_shift, find_values, memit, memit_shift, null_space
from tests.benchmarks.peer_retrieved import Bm25, retrieval
from tests.benchmarks.peer_trained import Adapter, fine_tuning, lora
from tests.benchmarks.quality import Plan, read_settings
from tests.benchmarks.quality_cell import Setting, Sizes
from tests.editing.model.test_framing import chatting
from tests.support.paths import PARITY

FIXTURE = PARITY / "llama-tiny"
KEYS = torch.tensor([[1.0, 0.0], [1.0, 1.0]])


@pytest.fixture(scope="module")
def loaded() -> Bench:
    return Bench(*pretrained.load(FIXTURE / "model", device=torch.device("cpu"), dtype="float32"))


@pytest.fixture
def bench(loaded: Bench) -> Iterator[Bench]:
    yield loaded
    loaded.restore()


@pytest.fixture(scope="module")
def edits(loaded: Bench) -> list[TokenizedEdit]:
    requests = [record.request for record in EditFile(FIXTURE / "edits.json") if isinstance(record, NumberedRequest)]
    return [tokenize(loaded.joiner, request, max_tokens=None) for request in requests[:6]]


def as_typed(bench: Bench, edits: Sequence[TokenizedEdit]) -> list[AnswerSequence]:
    """What a value is of."""
    return _variants(bench, edits, Values(layers=(), contexts=0))[0]


def test_memit_on_a_case_solved_by_hand() -> None:
    """K'K + C = [[3, 1], [1, 2]], K'R = [5, 0]."""
    found = memit_shift(KEYS, torch.tensor([[5.0], [0.0]]), torch.eye(2).double(), 1.0)
    assert torch.allclose(found, torch.tensor([[2.0], [-1.0]]).double())


def test_memit_weighs_the_text() -> None:
    """(4 * 3 + 4) s = 2 * 8 for one key of length 2, whose text has a second moment of 3."""
    found = memit_shift(torch.tensor([[2.0]]), torch.tensor([[8.0]]), torch.tensor([[3.0]]).double(), 4.0)
    assert found.item() == pytest.approx(1.0)


def test_alphaedit_on_a_case_solved_by_hand() -> None:
    """The text lies on the first axis. P K'K + I = [[1, 0], [1, 2]], P K'R = [0, 4]."""
    projector = null_space(torch.diag(torch.tensor([4.0, 0.0])).double(), 0.1)
    found = alphaedit_shift(KEYS, torch.tensor([[5.0], [4.0]]), projector, 1.0)
    assert torch.allclose(found, torch.tensor([[0.0], [2.0]]).double())


def test_words_that_few_facts_have_count_more() -> None:
    index = Bm25(["a b", "a c"])
    assert index.best("b", 1) == [(pytest.approx(math.log(2)), "a b")]
    assert index.best("c a", 1)[0][0] == pytest.approx(math.log(2) + math.log(1.2))
    assert [text for _, text in index.best("A c", 2)] == ["a c", "a b"]


def test_the_fact_that_fits_stands_before_the_prompt(bench: Bench, edits: list[TokenizedEdit]) -> None:
    first = edits[0].request
    ask = retrieval(bench, edits)
    assert ask(first.prompt) == f"{first.prompt} {first.target}.\n{first.prompt}"
    assert retrieval(bench, edits, at_least=1000.0)(first.prompt) == first.prompt
    probed = as_asked(edits[0], ask, bench)
    assert probed.sequence.answer_ids == edits[0].sequence.answer_ids
    assert all(len(probed.probes[name].input_ids) > len(sequence.input_ids) for name, sequence in edits[0].requested.items())


def test_a_merged_adapter_is_the_adapter() -> None:
    linear = nn.Linear(6, 4, bias=False)
    adapter = Adapter(linear, rank=2, scale=2.0, seed=0)
    assert torch.equal(adapter(linear, (torch.eye(6),), linear.weight.T), linear.weight.T)
    adapter.b.data.normal_(generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    expected = adapter(linear, (hidden,), linear(hidden))
    adapter.merge()
    assert torch.allclose(linear(hidden), expected, atol=1e-6)


def test_training_teaches_and_changes_what_it_says(bench: Bench, edits: list[TokenizedEdit]) -> None:
    before = {name: tensor.clone() for name, tensor in bench.model.named_parameters()}

    def changed() -> set[str]:
        return {name for name, tensor in bench.model.named_parameters() if not torch.equal(tensor, before[name])}

    lora(bench, edits, learning_rate=1e-2, modules=["self_attn.v_proj"], steps=3)
    assert changed() == {name for name in before if name.endswith("v_proj.weight")}
    bench.restore()
    assert not changed()
    fine_tuning(bench, edits, learning_rate=1e-2, layer=1, steps=30)
    assert changed() == {"model.layers.1.mlp.down_proj.weight"}
    assert peers.predict_probes(bench.decoder, edits[:1])[0]["sequence"] == edits[0].sequence.answer_ids


@pytest.mark.parametrize("layers", [(1,), (1, 2)])
def test_values_are_within_the_bound_and_make_the_targets_likelier(bench: Bench, edits: list[TokenizedEdit], layers: tuple[int, ...]) -> None:
    losses = []
    for steps in (0, 10):
        values = Values(layers=layers, steps=steps, contexts=1, bound=4.0, decay=0.0)
        found = find_values(bench, edits, values)
        site = bench.linear("1.mlp.down_proj") if layers == (1,) else bench.decoder.layers[2]
        start = _at_subjects(bench, site, layers[-1], as_typed(bench, edits), "output")
        assert torch.all((found - start).norm(dim=1) <= 4.0 * start.norm(dim=1) * 1.001)
        losses.append(_nats(bench, edits, site, found - start))
    assert losses[1] < losses[0] - 0.1


def _nats(bench: Bench, edits: list[TokenizedEdit], site: nn.Module, change: torch.Tensor) -> float:
    nats = []
    for sequence, own in zip(as_typed(bench, edits), change, strict=True):
        logits = _logits_with(bench, sequence, own, site)[sequence.first_row :]
        nats.append(float(nn.functional.cross_entropy(logits, torch.tensor(sequence.answer_ids))))
    return sum(nats) / len(nats)


@torch.no_grad()
def _logits_with(bench: Bench, sequence: AnswerSequence, change: torch.Tensor, site: nn.Module | None = None) -> torch.Tensor:
    """Logits of one sequence, with a change at its subject after a module, by default the MLP of layer 1."""

    def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[0, sequence.subject] += change
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = (site or bench.linear("1.mlp.down_proj")).register_forward_hook(add)
    try:
        found: torch.Tensor = bench.model(input_ids=torch.tensor([sequence.input_ids])).logits[0]
    finally:
        handle.remove()
    return found


def test_memit_without_text_writes_the_values(bench: Bench, edits: list[TokenizedEdit]) -> None:
    values = Values(layers=(1,), steps=5, contexts=0)
    wanted = find_values(bench, edits, values)
    before = _at_subjects(bench, bench.linear("1.mlp.down_proj"), 1, as_typed(bench, edits), "output")
    memit(bench, edits, weight=1e-7, layers=[1], steps=5, contexts=0)
    after = _at_subjects(bench, bench.linear("1.mlp.down_proj"), 1, as_typed(bench, edits), "output")
    assert (after - wanted).norm() < 0.01 * (before - wanted).norm()


def test_earlier_turns_hold_back_a_later_one_in_alphaedit() -> None:
    """One key of length 2, written before with K_0'K_0 = 12: (12 + 4 + 4) s = 2 * 10."""
    found = alphaedit_shift(torch.tensor([[2.0]]), torch.tensor([[10.0]]), torch.eye(1).double(), 4.0, torch.tensor([[12.0]]).double())
    assert found.item() == pytest.approx(1.0)


def test_edits_come_in_turns_and_alphaedit_keeps_their_keys(bench: Bench, edits: list[TokenizedEdit], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_bench, "EDITS_PER_TURN", 4)
    assert [len(turn) for turn in bench.turns(edits)] == [4, 2]
    alphaedit(bench, edits, threshold=1.0, layers=[1], steps=1, contexts=0)
    keys = torch.cat([_mean_keys_before(bench, turn) for turn in bench.turns(edits)])
    assert bench.written["1.mlp.down_proj"].trace() == pytest.approx(float(keys.double().square().sum()), rel=1e-4)
    bench.restore()
    assert bench.written == {}


def _mean_keys_before(bench: Bench, edits: Sequence[TokenizedEdit]) -> torch.Tensor:
    """Keys of layer 1, which no shift of its own output changes."""
    return _at_subjects(bench, bench.linear("1.mlp.down_proj"), 1, as_typed(bench, edits), "input")


@pytest.fixture(scope="module")
def chats() -> Bench:
    tokenizer = chatting()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, eos_token_id=None
    )
    return Bench(AutoModelForCausalLM.from_config(config), tokenizer)


FACTS = [
    EditRequest(f"The capital of {place} is", town, subject=place, rephrase=f"{place} has", locality_prompt="The sea is", locality_answer="wet")
    for place, town in (("France", "Lyon"), ("Italy", "Pisa"), ("Spain", "Toledo"))
]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ultraedit", {"modules": ["layers.1.mlp.down_proj"], "learning_rate": 1e-2}),
        ("memit", {"layers": [1], "steps": 1, "weight": 1.0}),
        ("lora", {"modules": ["self_attn.q_proj"], "steps": 1, "learning_rate": 1e-3}),
        ("fine-tuning", {"layer": 1, "steps": 1, "learning_rate": 1e-3}),
        ("retrieval", {}),
    ],
)
def test_a_model_with_a_template_is_taught_and_asked_in_chat_too(chats: Bench, method: str, options: dict[str, Any]) -> None:
    edits = [tokenize(chats.tokenizer, fact, max_tokens=None) for fact in FACTS]
    row = peers.measure(chats, Setting("own", "family", method, options), edits, Sizes(evaluated=3, generated=2, text_tokens=3))
    assert {"chat", "chat_rephrase", "chat_retention", "chat_stops"} <= row.keys()
    assert all(0 <= row[name] <= 1 for name in ("chat", "chat_rephrase", "chat_retention", "chat_stops"))
    raw, chat = chats.tokenized(edits[0]).forms
    assert chats.tokenizer.decode(raw.answer_ids) == " Lyon"
    assert chats.tokenizer.decode(chat.answer_ids) == "Lyon<|end|>"


@pytest.mark.parametrize("name", ["peers_smollm2.yaml", "peers_gemma.yaml"])
def test_all_peers_have_as_many_settings(name: str) -> None:
    settings = read_settings(Path(peers.__file__).with_name(name))
    assert set(Counter(setting.family for setting in settings).values()) == {2}
    assert {setting.method for setting in settings} == set(peers.METHODS)


@pytest.mark.thorough
def test_a_comparison_in_small(tmp_path: Path) -> None:
    solved = {"preserve": "exact", "subject_modules": ["layers.1.mlp.down_proj"], "subject_targets": "solved", "learning_rate": 1e-3}
    families = {
        "solved": {"modules": ["layers.2.self_attn.o_proj"], **solved},
        "memit": {"layers": [1, 2], "steps": 2},
        "alphaedit": {"layers": [1], "steps": 2},
        "lora": {"modules": ["self_attn.q_proj"], "steps": 2},
        "fine-tuning": {"layer": 1, "steps": 2},
        "retrieval": {},
    }
    settings = [
        Setting("own", family, "ultraedit" if family == "solved" else family, options | more)
        for (family, options), more in zip(
            families.items(), ({}, {"weight": 1.0}, {"threshold": 0.3}, {"learning_rate": 1e-3}, {"learning_rate": 1e-3}, {"facts": 2}), strict=True
        )
    ]
    plan = Plan(
        model=str(FIXTURE / "model"),
        data={"facts": FIXTURE / "edits.json"},
        settings=settings,
        tune_sizes=[3],
        sizes=[5],
        seeds=[0],
        stages=("tune", "report"),
        look=Sizes(evaluated=5, generated=2, text_tokens=3),
    )
    comparison = peers.Comparison(plan, tmp_path, text_tokens=2)
    comparison.run()
    assert [row["family"] for row in comparison.of("report")] == list(families)
    assert all(0 < row["seconds"] < 60 and math.isfinite(row["perplexity_growth"]) for row in comparison.of("report"))
    written = next(row for row in comparison.of("report") if row["family"] == "retrieval")
    assert written["perplexity_growth"] == pytest.approx(1.0)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 12
    assert json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])["stage"] == "tune"
    assert all((tmp_path / f"{stage}.png").stat().st_size > 1000 for stage in ("tune", "report"))
    assert all(word in (tmp_path / "peers.md").read_text() for word in ("## report", "## tune", "alphaedit", "| prompt | target | before | after |"))


def test_what_the_subject_is_stays_where_that_weighs_much(bench: Bench, edits: list[TokenizedEdit]) -> None:
    free, held = (find_values(bench, edits, Values(layers=(1,), steps=10, contexts=0, bound=4.0, decay=0.0, kl=kl)) for kl in (0.0, 1e4))
    start = find_values(bench, edits, Values(layers=(1,), steps=0, contexts=0))
    known = [bench.sequence(f"{edit.request.subject} is a", None, edit.request.subject) for edit in edits]

    def divergence(found: torch.Tensor) -> float:
        total = 0.0
        for sequence, change in zip(known, found - start, strict=True):
            logits = [_logits_with(bench, sequence, own)[-1].log_softmax(-1) for own in (torch.zeros_like(change), change)]
            total += float(nn.functional.kl_div(*logits, log_target=True, reduction="sum"))
        return total

    assert divergence(held) < 0.5 * divergence(free)
