"""Shards give what the whole model gives: what is captured, what is written, what is reported, on every shard."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.gang import run_on_shards
from tests.support.paths import PARITY
from tests.support.shard_jobs import Job, Record, run
from tests.support.small_editor import LONG_FRAMING
from tests.support.tiny_models import TINY, TinyModel
from workers.worker import Placement

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.distributed, pytest.mark.long]

FOUR = [model for model in TINY if model.name in ("llama", "gptj")]
BY_NAME = {model.name: model for model in TINY}
REFINED: dict[str, Any] = {"edits_per_turn": 3, "group_size": 2, "passes": 3, "margin": 0.1}
EXACT = {**REFINED, "passes": 2, "preserve": "exact", "preserve_weight": 30.0, "preserve_text": "everyday", "whiten": True}
EXACT |= {"small_turns": True, "preserve_neighbours": 2, "preserve_alike": True, "preserve_outputs": 0.8, "framings": ("raw", LONG_FRAMING)}
SUBJECTS = {**REFINED, "passes": 2, "subject_modules": ["model.layers.0.mlp.{up,down}_proj", "model.layers.1.mlp.up_proj"], "subject_scale": 0.5}
SOLVED: dict[str, Any] = {**REFINED, "passes": 2, "preserve": "exact", "preserve_weight": 30.0, "preserve_text": "everyday"}
SOLVED |= {"subject_targets": "solved", "subject_steps": 4, "subject_bound": 3.0, "subject_weight": 30.0, "framings": ("raw", "question")}
SOLVED["subject_modules"] = ["model.layers.0.mlp.down_proj", "model.layers.0.self_attn.o_proj"]
SKETCH = {**REFINED, "passes": 2, "preserve": "sketch", "preserve_weight": 30.0, "preserve_rank": 8, "preserve_text": "everyday"}
SKETCH |= {"small_turns": True, "preserve_neighbours": 2, "preserve_outputs": 0.5}


DAILY = {"llama", "solved", "refusals", "llama-tiny", "state-second"}
"""Jobs that two shards do in every run of the tests; the others are thorough."""
SETTINGS = ["many-rows", "d_in-form", "without-a-prefix", "saved", "refined", "preserving", "sketching", "subjects", "solved", "strength"]
DAILY_REPLICATED = {"uneven", "uneven-one-by-one", "preserving", "thin"}
"""Likewise of two replicas of one shard."""
SIZES = {"even": (4, 2), "uneven": (5, 2), "one-group": (3, 3), "one-edit": (1, 1), "all": (7, 1)}
"""Edits of a turn and of a group: whole groups that do and do not divide by two replicas, a group that is a turn, and a turn of one edit."""
REPLICATED = [*SIZES, "llama-tiny", "gptj-tiny", "gptj", "gemma3"]
REPLICATED += ["preserving", "sketching", "subjects", "solved", "strength", "subject-by-subject"]


def thorough_but(names: Iterable[str], daily: set[str]) -> list[Any]:
    """Cases of a test, of which those of the daily jobs alone are in every run of the tests."""
    return [name if name in daily else pytest.param(name, marks=pytest.mark.thorough) for name in names]


class Gang:
    """Records of jobs by name, which two gangs make when they are first asked for: one does the daily jobs, the other the others."""

    def __init__(self, jobs: Iterable[Job], daily: set[str], records_of: Callable[[list[Job]], dict[str, list[Record]]]) -> None:
        self._jobs = list(jobs)
        self._daily = daily
        self._records_of = records_of
        self._records: dict[str, list[Record]] = {}

    def __getitem__(self, name: str) -> list[Record]:
        if name not in self._records:
            self._records |= self._records_of([job for job in self._jobs if (job.name in self._daily) == (name in self._daily)])
        return self._records[name]


@pytest.fixture(scope="module", params=[pytest.param(1, id="of-one-shard"), pytest.param(2, id="of-two-shards", marks=pytest.mark.thorough)])
def num_shards(request: pytest.FixtureRequest) -> int:
    """Of each replica."""
    return int(request.param)


@pytest.fixture(scope="module")
def on_whole_model() -> Callable[[Job], Record]:
    """Does a job on the whole model, in this process; the same job only once."""
    done: dict[str, Record] = {}

    def of(job: Job) -> Record:
        if repr(job) not in done:
            done[repr(job)] = run(job, Placement())
        return done[repr(job)]

    return of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def job_of(folder: Path) -> Callable[..., Job]:
    """A job with a tiny model, which is written at its first use."""

    def make(model: TinyModel, name: str | None = None, **changes: Any) -> Job:
        path = folder / "models" / model.name
        if not path.exists():
            model.write(path)
        return replace(Job(name or model.name, str(path), model.modules), **changes)

    return make


@pytest.fixture(scope="module")
def parity_jobs() -> list[Job]:
    jobs = []
    for fixture in ("llama-tiny", "gptj-tiny"):
        run_json = json.loads((PARITY / fixture / "run.json").read_text())
        options = {"edits_per_turn": run_json["edits_per_turn"], "group_size": run_json["batch_size"]}
        model, edits = str(PARITY / fixture / "model"), str(PARITY / fixture / "edits.json")
        jobs.append(Job(fixture, model, tuple(run_json["edit_modules"]), edits, run_json["lr"], options=options))
    return jobs


@pytest.fixture(scope="module")
def variants(job_of: Callable[..., Job], folder: Path) -> list[Job]:
    llama = BY_NAME["llama"]
    one_turn = {"edits_per_turn": 7, "group_size": 3}  # 35 rows, more than the 32 features of a key
    return [
        job_of(llama, "many-rows", options=one_turn),
        job_of(llama, "d_in-form", options={**one_turn, "solve": "d_in"}),
        job_of(llama, "without-a-prefix", options={"edits_per_turn": 3, "cache_prefix": False, "batch_tokens": 40}),
        job_of(llama, "saved", saved=str(folder / "saved")),
        job_of(BY_NAME["gemma3"], "saved-multimodal", measured=False, saved=str(folder / "saved-multimodal")),
        job_of(llama, "refined", options=REFINED, last_turn=2),
        job_of(llama, "preserving", options=EXACT, last_turn=2),
        job_of(BY_NAME["llama-uneven"], "sketching", options=SKETCH, state_after=str(folder / "sketching")),
        job_of(llama, "subjects", options=SUBJECTS, last_turn=2, state_after=str(folder / "subjects")),
        job_of(llama, "solved", options=SOLVED, last_turn=2),
        job_of(llama, "strength", options={**EXACT, "strength": 0.05}, last_turn=2),
        job_of(llama, "refusals", measured=False, extra="refusals"),
    ]


@pytest.fixture(scope="module")
def state_jobs(job_of: Callable[..., Job], folder: Path) -> list[Job]:
    """One turn on the whole model, the next on two shards, the last on the whole model again."""
    states = [str(folder / f"state{i}") for i in range(3)]
    llama = BY_NAME["llama"]
    return [
        job_of(llama, "state-first", last_turn=1, measured=False, state_after=states[0]),
        job_of(llama, "state-second", first_turn=1, last_turn=2, measured=False, state_before=states[0], state_after=states[1]),
        job_of(llama, "state-third", first_turn=2, measured=False, state_before=states[1]),
    ]


@pytest.fixture(scope="module")
def half_jobs(job_of: Callable[..., Job], folder: Path) -> list[Job]:
    return [
        job_of(
            BY_NAME["llama"], "bfloat16", dtype="bfloat16", measured=False, state_after=str(folder / "state-half"), saved=str(folder / "saved-half")
        )
    ]


@pytest.fixture(scope="module")
def two(job_of: Callable[..., Job], parity_jobs: list[Job], variants: list[Job], state_jobs: list[Job], half_jobs: list[Job], folder: Path) -> Gang:
    """Records of two shards."""
    run(state_jobs[0], Placement())
    own_head = job_of(BY_NAME["llama"], "own-head", options={"edits_per_turn": 100}, extra="own head")
    jobs = [*map(job_of, TINY), *variants, *parity_jobs, state_jobs[1], *half_jobs, own_head]
    return Gang(jobs, DAILY, lambda some: run_on_shards(some, 2, folder))


@pytest.fixture(scope="module")
def four(job_of: Callable[..., Job], folder: Path) -> dict[str, list[Record]]:
    """Records of four shards, of which two have no attention head where there are two heads of keys and values."""
    return run_on_shards([job_of(model, f"{model.name}-on-four") for model in FOUR], 4, folder)


@pytest.fixture(scope="module")
def replica_jobs(job_of: Callable[..., Job], parity_jobs: list[Job]) -> list[Job]:
    llama = BY_NAME["llama"]
    jobs = [job_of(llama, name, options={"edits_per_turn": turn, "group_size": group}) for name, (turn, group) in SIZES.items()]
    wide = TinyModel("wide", "llama", ("model.layers.{1,2}.mlp.{gate,down}_proj",), {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64})
    thin = job_of(wide, "thin", options={"edits_per_turn": 1, "group_size": 1}, last_turn=1, measured=False, extra="sent")
    one_by_one = [replace(job, name=f"{job.name}-one-by-one", lookahead=1, measured=False) for job in jobs]
    methods = [
        job_of(llama, name, options=options, last_turn=2)
        for name, options in (
            ("preserving", EXACT),
            ("sketching", SKETCH),
            ("subjects", SUBJECTS),
            ("solved", SOLVED),
            ("strength", {**EXACT, "strength": 0.05}),
        )
    ]
    methods.append(job_of(llama, "subject-by-subject", options={**SUBJECTS, "group_size": 1}))  # the last turn is one edit, and has none
    return [*jobs, *parity_jobs, *(job_of(BY_NAME[name]) for name in ("gptj", "gemma3")), *methods, thin, *one_by_one]


@pytest.fixture(scope="module")
def replicas(num_shards: int, replica_jobs: list[Job], folder: Path) -> Gang:
    """Records of two replicas."""
    of_shards = folder / f"replicas-of-{num_shards}"
    of_shards.mkdir()
    daily = DAILY_REPLICATED if num_shards == 1 else set()
    return Gang(replica_jobs, daily, lambda jobs: run_on_shards(jobs, num_shards, of_shards, num_replicas=2))


@pytest.mark.parametrize("name", thorough_but(REPLICATED, DAILY_REPLICATED))
def test_two_replicas_equal_one(name: str, replicas: Gang, replica_jobs: list[Job], on_whole_model: Callable[[Job], Record]) -> None:
    (job,) = (job for job in replica_jobs if job.name == name)
    whole, records = on_whole_model(job), replicas[name]
    for record in records:
        assert_close_weights(record, whole)
        assert record.values["digests"] == records[0].values["digests"]
        assert record.values["reports"] == records[0].values["reports"]
    _assert_same_values(whole.values, records[0].values)


@pytest.mark.parametrize("name", thorough_but(SIZES, DAILY_REPLICATED))
def test_lookahead_gives_the_same_bits_on_replicas(name: str, replicas: Gang) -> None:
    ahead, one_by_one = (replicas[found][0].values for found in (name, f"{name}-one-by-one"))
    assert one_by_one["digests"] == ahead["digests"]
    assert one_by_one["reports"] == ahead["reports"]


def test_nothing_as_large_as_a_weight_leaves_a_worker_in_a_turn(num_shards: int, replicas: Gang) -> None:
    for record in replicas["thin"]:
        smallest = min(t.numel() for name, t in record.tensors.items() if name.startswith("weight."))
        assert record.values["sent"], "the count sees nothing"
        assert max(record.values["sent"]) < smallest / num_shards / 2  # a shard's own part of a weight would be seen


@pytest.mark.parametrize("name", thorough_but(BY_NAME, DAILY))
def test_two_shards_equal_one(name: str, two: Gang, job_of: Callable[..., Job], on_whole_model: Callable[[Job], Record]) -> None:
    assert_same(on_whole_model(job_of(BY_NAME[name])), two[name])


@pytest.mark.thorough
@pytest.mark.parametrize("model", FOUR, ids=lambda m: m.name)
def test_four_shards_equal_one(model: TinyModel, four: dict[str, list[Record]], job_of: Callable[..., Job]) -> None:
    assert_same(run(job_of(model), Placement()), four[f"{model.name}-on-four"])


@pytest.mark.parametrize("name", thorough_but(SETTINGS, DAILY))
def test_two_shards_equal_one_whatever_the_settings(name: str, two: Gang, variants: list[Job]) -> None:
    job = next(job for job in variants if job.name == name)
    assert_same(run(replace(job, saved=None, state_after=None), Placement()), two[job.name])


@pytest.mark.parametrize("fixture", thorough_but(["llama-tiny", "gptj-tiny"], DAILY))
def test_two_shards_reproduce_the_published_shifts(fixture: str, two: Gang) -> None:
    expected = load_file(PARITY / fixture / "expected.safetensors")
    before = {k: t for file in (PARITY / fixture / "model").glob("*.safetensors") for k, t in load_file(file).items()}
    weights = {k.removeprefix("weight."): t for k, t in two[fixture][0].tensors.items() if k.startswith("weight.")}
    turns = len(two[fixture][0].values["reports"])
    for name, weight in weights.items():
        shift = sum(expected[f"turn{t}.shift.{name}"].double() for t in range(turns))
        assert relative_error((weight.double() - before[f"{name}.weight"].double()).T, shift) < 1e-4


def test_a_state_moves_between_one_and_two_shards(
    two: Gang, state_jobs: list[Job], job_of: Callable[..., Job], on_whole_model: Callable[[Job], Record]
) -> None:
    whole, last = on_whole_model(job_of(BY_NAME["llama"])), run(state_jobs[2], Placement())
    assert last.values["reports"][-1]["turn"] == whole.values["reports"][-1]["turn"] == 3
    assert_close_weights(last, whole)
    for name in (n for n in whole.tensors if n.startswith(("mean.", "std."))):
        assert relative_error(last.tensors[name], whole.tensors[name]) < 1e-5


@pytest.mark.thorough
def test_a_sketch_written_by_shards_is_that_of_the_whole_model(two: Gang, variants: list[Job], folder: Path) -> None:
    """Directions may be turned; what they stand for may not."""
    job = next(job for job in variants if job.name == "sketching")
    run(replace(job, state_after=str(folder / "sketching-whole")), Placement())
    whole, shards = load_file(folder / "sketching-whole"), load_file(folder / "sketching")
    assert whole.keys() == shards.keys()
    for name in (name for name in whole if name.startswith("sketch.")):
        assert whole[name].shape == shards[name].shape == (9, job_shape(whole, name))
        for part in (slice(0, 8), slice(8, 9)):
            assert relative_error(shards[name][part].T @ shards[name][part], whole[name][part].T @ whole[name][part]) < 1e-5


def job_shape(state: dict[str, torch.Tensor], name: str) -> int:
    return state[name.replace("sketch.", "weight.")].shape[1]


def test_a_state_written_by_shards_is_loaded_bit_for_bit(two: Gang, state_jobs: list[Job]) -> None:
    stored = load_file(state_jobs[1].state_after)
    for name, weight in stored.items():
        if name.startswith("weight."):
            assert torch.equal(weight, two["state-second"][0].tensors[name])


@pytest.mark.thorough
def test_bfloat16_shards_keep_masters_and_round_as_the_whole_model_does(two: Gang, half_jobs: list[Job], folder: Path) -> None:
    stored = load_file(folder / "state-half")
    (job,) = half_jobs
    whole = run(replace(job, state_after=str(folder / "whole-half"), saved=None), Placement())
    expected = load_file(folder / "whole-half")
    assert stored.keys() == expected.keys()
    assert two["bfloat16"][0].values["fingerprint"] == whole.values["fingerprint"]
    for name in (n for n in stored if n.startswith("master.")):
        shift = expected[name] - load_file_weight(job, name)
        # the forward passes are bfloat16's own, and their rounding depends on the order of sums
        assert relative_error(stored[name] - load_file_weight(job, name), shift) < 0.1
        assert torch.equal(stored[name].bfloat16(), stored[name.replace("master.", "weight.")])
    base, saved = (dict(AutoModelForCausalLM.from_pretrained(path).named_parameters()) for path in (job.model, folder / "saved-half"))
    for name, weight in saved.items():  # in the base's precision: the edited ones hold bfloat16 values, the others are as they were
        edited = f"weight.{name.removesuffix('.weight')}" in stored
        assert weight.dtype == base[name].dtype
        assert torch.equal(weight, weight.bfloat16().float()) if edited else torch.equal(weight, base[name])


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["saved", "saved-multimodal"])
def test_a_saved_model_is_plain_and_has_the_edited_weights(name: str, two: Gang, variants: list[Job]) -> None:
    (job,) = (job for job in variants if job.name == name)
    saved, base = (dict(AutoModelForCausalLM.from_pretrained(path).named_parameters()) for path in (job.saved, job.model))
    weights = {k.removeprefix("weight."): t for k, t in two[name][0].tensors.items() if k.startswith("weight.")}
    assert saved.keys() == base.keys()
    for key, weight in saved.items():
        assert torch.equal(weight, weights.get(key.removesuffix(".weight"), base[key])), key


def test_all_shards_refuse_alike_what_is_broken_on_one(two: Gang) -> None:
    first, second = two["refusals"]
    assert first.values["refusals"] == second.values["refusals"]
    refusal, written = first.values["refusals"]
    assert "not finite" in refusal
    assert refusal.endswith(" 0")  # turns applied
    assert written == "not written"
    assert_close_weights(first, two["llama"][0], 1e-12)  # and nothing was changed by it


@pytest.mark.thorough
def test_without_the_repair_of_the_head_gradients_would_be_seen_to_be_wrong(two: Gang, job_of: Callable[..., Job]) -> None:
    whole = run(job_of(BY_NAME["llama"], options={"edits_per_turn": 100}, extra="own head"), Placement())
    record = two["own-head"][0]
    torch.testing.assert_close(record.tensors["losses"], whole.tensors["losses"], rtol=1e-5, atol=1e-5)
    errors = _capture_errors(whole, record)
    assert max(e for name, e in errors.items() if name.startswith("keys.")) < 1e-5
    assert min(e for name, e in errors.items() if name.startswith("gradients.")) > 1e-2


def assert_same(whole: Record, shards: list[Record]) -> None:
    """Shards agree with each other to the bit, and with the whole model to rounding."""
    for record in shards:
        for name, error in _capture_errors(whole, record).items():
            assert error < 1e-5, name
        assert_close_weights(record, whole)
        for name in (n for n in whole.tensors if n.startswith(("mean.", "std."))):
            assert relative_error(record.tensors[name], whole.tensors[name]) < 1e-5
            assert torch.equal(record.tensors[name], shards[0].tensors[name])
        assert record.values == {**shards[0].values, "described": record.values["described"]}
    _assert_same_values(whole.values, shards[0].values)


def _assert_same_values(whole: dict[str, Any], shard: dict[str, Any]) -> None:
    for name in set(whole) - {"reports", "digests", "described", "vitals", "sent"}:
        assert shard[name] == whole[name], name
    for name, value in whole["vitals"].items():
        assert shard["vitals"][name] == (None if value is None else pytest.approx(value, rel=1e-4)), name
    assert shard["digests"].keys() == whole["digests"].keys()
    assert shard["described"] == {**whole["described"], **{name: shard["described"][name] for name in ("shards", "replicas")}}
    for ours, theirs in zip(shard["reports"], whole["reports"], strict=True):
        assert ours["shift_norms"] == pytest.approx(theirs["shift_norms"], rel=1e-5)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["conditions"] == pytest.approx(theirs["conditions"], rel=0.1)  # an estimate, and of another system in the other form
        assert ours["weight_growth"] == pytest.approx(theirs["weight_growth"], abs=1e-6)
        assert ours["rate"] == (None if theirs["rate"] is None else pytest.approx(theirs["rate"], rel=1e-5))
        rounded = dict.fromkeys(("shift_norms", "loss", "conditions", "weight_growth", "rate"), 0)
        assert ours | rounded == theirs | rounded


def _capture_errors(whole: Record, shard: Record) -> dict[str, float]:
    """Relative error of a shard's slices of keys and value gradients, by kind and module."""
    errors = {}
    for kind, features in (("keys", "key_features"), ("gradients", "value_features")):
        for name in (n.removeprefix(kind + ".") for n in whole.tensors if n.startswith(kind + ".")):
            expected = whole.tensors[f"{kind}.{name}"]
            error = shard.tensors[f"{kind}.{name}"] - expected[:, shard.tensors[f"{features}.{name}"]]
            errors[f"{kind}.{name}"] = float(error.norm() / expected.norm())
    return errors


def assert_close_weights(record: Record, whole: Record, tolerance: float = 1e-5) -> None:
    for name in (n for n in whole.tensors if n.startswith("weight.")):
        assert relative_error(record.tensors[name], whole.tensors[name]) < tolerance, name


def load_file_weight(job: Job, name: str) -> torch.Tensor:
    key = name.removeprefix("master.") + ".weight"
    (found,) = (t[key] for file in Path(job.model).glob("*.safetensors") if key in (t := load_file(file)))
    return found.bfloat16().float()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())
