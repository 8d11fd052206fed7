"""The watched sample is uniform, seeded, and measured as a full evaluation would."""

import json
from collections import Counter

import pytest

from editing.monitoring.evaluation import evaluate
from editing.monitoring.watch import Watch
from tests.support.small_editor import FACTS, editor, edits_with_probes


def test_a_watch_that_holds_everything_measures_what_an_evaluation_does() -> None:
    one = editor(edits_per_turn=3)
    everything = edits_with_probes(one)
    watch = Watch(one, size=len(everything))
    for a in range(0, len(everything), 3):
        one.apply([e.request for e in everything[a : a + 3]])
        watch.offer(everything[a : a + 3])
    assert watch.results() == evaluate(one, everything)


def test_every_edit_has_the_same_chance() -> None:
    one = editor()
    everything = edits_with_probes(one)
    seen: Counter[str] = Counter()
    for seed in range(120):
        watch = Watch(one, size=2, seed=seed)
        watch.offer(everything[:4])
        watch.offer(everything[4:])
        seen.update(member.edit.request.prompt for member in watch._members)
    assert sum(seen.values()) == 240
    assert all(20 <= seen[prompt] <= 50 for prompt, _ in FACTS)  # 34 expected


def test_a_restored_watch_goes_on_with_the_same_sample() -> None:
    one = editor(edits_per_turn=3)
    everything = edits_with_probes(one)
    watch, other = Watch(one, size=3), Watch(one, size=3, seed=9)
    one.apply([e.request for e in everything[:3]])
    watch.offer(everything[:3])
    other.restore(json.loads(json.dumps(watch.state())))
    one.apply([e.request for e in everything[3:6]])
    for each in (watch, other):
        each.offer(everything[3:])
    assert other.results() == watch.results()
    assert other.state() == watch.state()


@pytest.mark.parametrize("size", [0, 1])
def test_a_tiny_sample_works(size: int) -> None:
    one = editor()
    watch = Watch(one, size=size)
    watch.offer(edits_with_probes(one))
    assert len(watch._members) == size
    assert bool(watch.measure()) is bool(size)
