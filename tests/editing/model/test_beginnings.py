"""What many sequences begin with runs once, and states and rows are those of whole sequences; where a family cannot, whole ones run."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from editing.method.rows import TurnRows
from editing.model import prefix
from editing.model.beginnings import Part, shared
from editing.model.capture import capture, group_weights
from editing.model.decoder import Decoder
from editing.model.modules import resolve
from editing.model.prefix import Prefixed, batches_of, predict, run_prefix
from editing.model.token_keys import token_keys
from editing.model.tokenization import AnswerSequence
from tests.editing.model.test_architectures import SMALL, SUPPORTED
from tests.editing.model.test_continuation import WITH_STATES

CPU = torch.device("cpu")
TEMPLATE = tuple(range(3, 23))
RESTS = [(30, 31), (32, 33, 34, 35, 36), (30, 37, 38), (39, 40, 41), (42,)]
CHATS = [AnswerSequence((*TEMPLATE, *rest), (0,)) for rest in RESTS]
TYPED = [AnswerSequence((*rest, 50, 51), (0,)) for rest in RESTS]


def model(family: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options)).eval()


def states(decoder: Decoder, sequences: list[AnswerSequence], **options: Any) -> list[Tensor]:
    prefixed = run_prefix(decoder, sequences, stop=2, batch_tokens=64, **options)
    assert prefixed.hidden is not None
    return [prefixed.hidden.get(i) for i in range(len(sequences))]


def whole(decoder: Decoder, sequences: list[AnswerSequence]) -> list[Tensor]:
    return [decoder.prefix(torch.tensor([sequence.input_ids]), 2)[0] for sequence in sequences]


def tokens_run(decoder: Decoder, sequences: list[AnswerSequence]) -> int:
    """Tokens, pads too, that go through layer 0."""
    counted: list[int] = []
    handle = decoder.layers[0].register_forward_pre_hook(lambda _module, inputs: counted.append(inputs[0].shape[:2].numel()))
    states(decoder, sequences)
    handle.remove()
    return sum(counted)


@pytest.mark.parametrize("name", SUPPORTED)
def test_hidden_states_are_those_of_whole_sequences_in_every_architecture(name: str) -> None:
    family, _, options = SUPPORTED[name]
    decoder = Decoder(model(family, **options))
    for found, expected in zip(states(decoder, CHATS + TYPED), whole(decoder, CHATS + TYPED), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert decoder.shares[range(2)] or name in WITH_STATES


def test_a_beginning_runs_once_for_all_that_share_it() -> None:
    decoder = Decoder(model("llama", **SMALL))
    states(decoder, CHATS)  # tries whether it can
    rests = sum(map(len, RESTS))
    assert len(TEMPLATE) + rests <= tokens_run(decoder, CHATS) <= len(TEMPLATE) + 2 * rests
    assert tokens_run(decoder, CHATS[:3]) >= 3 * len(TEMPLATE)  # too few to share


def test_a_window_of_attention_that_is_shorter_than_the_beginning_is_kept() -> None:
    options = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2}
    decoder = Decoder(model("gemma3_text", **options))
    for found, expected in zip(states(decoder, CHATS), whole(decoder, CHATS), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert decoder.shares[range(2)]


def test_what_one_part_gives_does_not_depend_on_the_others() -> None:
    decoder = Decoder(model("llama", **SMALL))
    longer = [AnswerSequence((*TEMPLATE, 30, *sequence.input_ids), (0,)) for sequence in CHATS]  # alone they share a token more
    together = states(decoder, CHATS + longer, apart=[len(CHATS), len(longer)])
    for found, expected in zip(together, states(decoder, CHATS) + states(decoder, longer), strict=True):
        assert torch.equal(found, expected)


def test_rows_are_never_shared() -> None:
    alone = AnswerSequence(TEMPLATE, (0, 0))
    (part,) = shared([*CHATS, alone])
    assert list(part.members) == [0, 1, 2, 3, 4, 5]
    assert part.length == len(TEMPLATE) - 2


def test_an_early_answer_takes_nothing_from_the_others() -> None:
    early = AnswerSequence((*TEMPLATE, 40), (0,) * 15)
    rest, chats = shared([*CHATS, early])
    assert (list(rest.members), rest.length) == ([5], 0)
    assert (list(chats.members), chats.length) == ([0, 1, 2, 3, 4], len(TEMPLATE))


def test_a_long_beginning_makes_smaller_batches() -> None:
    long = [AnswerSequence((*range(100), 100 + i, 7), (0,)) for i in range(8)]
    found = batches_of(Prefixed(long, None), shared(long), batch_tokens=64, device=CPU)
    assert [len(batch.indices) for batch, _ in found] == [0, 2, 2, 2, 2]  # the beginning, then 102 tokens each, within 4 times 64


def test_nothing_gives_nothing() -> None:
    decoder = Decoder(model("llama", **SMALL))
    assert predict(decoder, run_prefix(decoder, [], stop=2, batch_tokens=64), start=2, batch_tokens=64) == []


def test_answers_are_predicted_as_in_whole_sequences() -> None:
    decoder = Decoder(model("llama", **SMALL, initializer_range=0.5))  # one that attends
    asked = [AnswerSequence((*s.input_ids, 7, 8), (7, 8, 9)) for s in CHATS + TYPED]
    for start in (0, 2):
        prefixed = run_prefix(decoder, asked, stop=start, batch_tokens=64)
        found = predict(decoder, prefixed, start=start, batch_tokens=64)
        assert decoder.shares == {range(4): True}
        assert found == [alone for one in asked for alone in predict(decoder, Prefixed([one], None), start=0, batch_tokens=64)]


def test_keys_of_rows_are_those_of_whole_sequences() -> None:
    decoder = Decoder(model("llama", **SMALL))
    modules = {name: decoder.model.get_submodule(name) for name in ("model.layers.1.mlp.up_proj", "model.layers.2.mlp.down_proj")}
    rows = dict(token_keys(decoder, modules, run_prefix(decoder, CHATS + TYPED, stop=1, batch_tokens=64), start=1, batch_tokens=64, of_rows=True))
    assert decoder.shares[range(1, 3)]
    for i, sequence in enumerate(CHATS + TYPED):
        for name, keys in token_keys(decoder, modules, Prefixed([sequence], None), start=0, batch_tokens=64):
            torch.testing.assert_close(rows[name][i], keys[-1], rtol=1e-4, atol=1e-5)


def captured(decoder: Decoder, names: list[str], parts: list[Part], *, start: int) -> TurnRows:
    """Rows of chats with answers of one to three tokens, their subjects' last tokens, and the keys of all their tokens."""
    asked = [AnswerSequence((*s.input_ids, 7, 8)[: 2 + len(s.input_ids) - i % 3], (7, 8, 9)[: 1 + i % 3], len(TEMPLATE)) for i, s in enumerate(CHATS)]
    everything = [*asked, *(AnswerSequence((*s.input_ids, 7), (7, 8)) for s in TYPED)]
    prefixed = run_prefix(decoder, everything, stop=start, batch_tokens=64)
    return capture(
        decoder,
        resolve(decoder, names),
        batches_of(prefixed, parts or shared(everything), batch_tokens=64, device=CPU),
        group_weights((len(s.answer_ids) for s in everything), 3),
        start=start,
        sites={names[0]: "subject"},
        num_subjects=len(asked),
        num_tokens=sum(len(s.input_ids) for s in everything),
    )


@pytest.mark.parametrize("name", sorted(set(SUPPORTED) - set(WITH_STATES)))
@pytest.mark.parametrize("start", [0, 1])
def test_captured_rows_are_those_of_whole_sequences(name: str, start: int) -> None:
    family, module, options = SUPPORTED[name]
    decoder = Decoder(model(family, **options).requires_grad_(False))
    names = [found for layer in (1, 2) for found in resolve(decoder, [f"layers.{layer}.{module}"])]
    found, expected = (captured(decoder, names, parts, start=start) for parts in ([], [Part(range(len(CHATS) + len(TYPED)))]))
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-4, atol=1e-5)
    for tables, others in ((found.keys, expected.keys), (found.tokens, expected.tokens), (found.value_gradients, expected.value_gradients)):
        for key, values in tables.items():
            assert values.isfinite().all()
            torch.testing.assert_close(values, others[key], rtol=1e-3, atol=1e-5)


def test_a_captured_beginning_leaves_no_graph_and_runs_once() -> None:
    decoder = Decoder(model("llama", **SMALL).requires_grad_(False))
    seen: list[tuple[int, bool]] = []
    handle = decoder.layers[3].register_forward_hook(lambda _module, inputs, _output: seen.append((inputs[0].shape[1], inputs[0].requires_grad)))
    captured(decoder, ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"], [], start=0)
    handle.remove()
    assert [with_graph for width, with_graph in seen if width == len(TEMPLATE)] == [False]
    assert sum(with_graph for _, with_graph in seen) == len(seen) - 1


def test_no_subject_is_shared() -> None:
    chats = [AnswerSequence(chat.input_ids, (0,), subject) for chat, subject in zip(CHATS, (18, 20, 20, 20, 20), strict=True)]
    (part,) = shared(chats)
    assert part.length == 18
    early = [AnswerSequence(CHATS[0].input_ids, (0,), 3), *chats]
    assert [list(one.members) for one in shared(early)] == [[0], [1, 2, 3, 4, 5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_family_that_gives_something_else_runs_whole_sequences(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(model("llama", **SMALL).to(dtype))
    decoder.table.weight.data[1] *= 1e6  # one state that is so large says nothing of the others
    monkeypatch.setattr(prefix.After, "arguments", lambda *_: {})  # the beginning is forgotten
    for found, expected in zip(states(decoder, CHATS), whole(decoder, CHATS), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-3)
    assert decoder.shares == {range(2): False}


def test_positions_that_turn_with_the_length_are_those_of_whole_sequences() -> None:
    decoder = Decoder(model("llama", **SMALL, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}))
    for found, expected in zip(states(decoder, CHATS), whole(decoder, CHATS), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert decoder.shares == {range(2): False}


def test_layers_that_are_part_of_tried_ones_are_not_tried_again() -> None:
    decoder = Decoder(model("llama", **SMALL))
    for stop in (3, 2):
        run_prefix(decoder, CHATS, stop=stop, batch_tokens=64)
    assert decoder.shares == {range(3): True}
