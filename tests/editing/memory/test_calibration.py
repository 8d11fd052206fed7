"""The lookahead follows the memory budget, the machine's rates and the edits to come."""

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from editing.memory.budget import Footprint, MemoryPlan, Work, make_plan
from editing.memory.calibration import Forecast, Rates, outlook
from editing.model.decoder import Decoder
from editing.model.modules import resolve

GIB = 2**30
SLOW_DISK = Rates(flops=1e12, read=1e9 / 8)


@pytest.fixture(scope="module")
def footprint() -> Footprint:
    """Of Mistral 7B, layers 29 and 30 edited."""
    with torch.device("meta"):
        decoder = Decoder(MistralForCausalLM(MistralConfig(vocab_size=32768, dtype="bfloat16")))
    return Footprint.of(decoder, resolve(decoder, ("model.layers.{29,30}.mlp.down_proj",)), torch.bfloat16)


def within(footprint: Footprint, budget: int) -> MemoryPlan:
    return make_plan(footprint, Work(batch_tokens=2048, edits_per_turn=100, process=GIB // 2), budget)


def test_a_larger_budget_reads_less_and_looks_less_far_ahead(footprint: Footprint) -> None:
    found = [Forecast.of(footprint, within(footprint, gib * GIB), SLOW_DISK, 100) for gib in (5, 11, 40)]
    assert found[0].lookahead > found[1].lookahead > found[2].lookahead == 4
    assert found[0].read_seconds > found[1].read_seconds > found[2].read_seconds == 0


@pytest.mark.parametrize(("num_edits", "windows"), [(1, [1]), (500, [5]), (550, [3, 3]), (700, [4, 3]), (900, [5, 4]), (1300, [5, 5, 3])])
def test_no_short_window_is_left_at_the_end(footprint: Footprint, num_edits: int, windows: list[int]) -> None:
    fast = Rates(flops=1e11, read=1e12)
    chosen = Forecast.of(footprint, within(footprint, 5 * GIB), fast, 100, num_edits=num_edits).lookahead
    turns = -(-num_edits // 100)
    assert [min(chosen, turns - a) for a in range(0, turns, chosen)] == windows


def test_hidden_states_that_go_to_the_disk_are_told(footprint: Footprint) -> None:
    tight, wide = within(footprint, 5 * GIB), within(footprint, 40 * GIB)
    for plan, told in ((tight, "are kept in memory up to"), (wide, None)):
        lines = dict(outlook(footprint, plan, Forecast.of(footprint, plan, SLOW_DISK, 100), where="/models/m", pinned=False, lookahead=400))
        assert ("lookahead" in lines) == (told is not None)
        assert told is None or told in lines["lookahead"]
