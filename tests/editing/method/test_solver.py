"""The solver of a turn solves the problem that its head states, on synthetic rows, against float64 least squares."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from editing import EditorConfig, TurnRefused
from editing.method.features import Features
from editing.method.lifelong import LifelongStatistics
from editing.method.preserve import TEXT_WEIGHT, PreservingRidge, ridges_of_keys
from editing.method.rows import Site, TurnRows
from editing.method.solver import Solution, TurnSolver
from editing.ranges import consecutive
from editing.sharding.collectives import Collectives, SingleWorker
from editing.sharding.shards import LinearShard
from tests.support.emulated_workers import EmulatedWorker, run_workers

D_IN, D_OUT, RATE = 12, 7, 1e-2
NAMES = ("a", "b")
GROUPS = {"answer": [2, 3, 1], "subject": [1, 1, 2]}
COUNTS = {site: sum(sizes) for site, sizes in GROUPS.items()}


def config(**options: Any) -> EditorConfig:
    return EditorConfig(modules=NAMES, learning_rate=RATE, **{"moments": "exact", **options})


def turn_rows(shards: Mapping[str, LinearShard] | None = None, *, at_subject: tuple[str, ...] = (), seed: int = 0, times: int = 1) -> TurnRows:
    """Rows with means and scales of their own per feature; a shard's slice of the same numbers."""
    shards = shards or {name: LinearShard((D_IN, D_OUT)) for name in NAMES}
    sites: dict[str, Site] = {name: "subject" if name in at_subject else "answer" for name in shards}
    generator = torch.Generator().manual_seed(seed)
    rows = TurnRows.empty(shards, sites, {site: times * count for site, count in COUNTS.items()}, num_tokens=9)
    for name, shard in shards.items():
        n = len(rows.keys[name])
        keys = torch.randn(n, D_IN, generator=generator) * torch.linspace(0.5, 3, D_IN) + 1
        gradients = 1e-2 * torch.randn(n, D_OUT, generator=generator) * torch.linspace(1, 2, D_OUT)
        tokens = torch.randn(9, D_IN, generator=generator)
        held_keys, held_values = shard.key_features, shard.value_features - D_IN
        rows.keys[name][:], rows.tokens[name][:] = keys[:, held_keys], tokens[:, held_keys]
        rows.value_gradients[name][:] = gradients[:, held_values]
    rows.losses.fill_(1.0), rows.correct.fill_(False), rows.pending.fill_(True)
    return rows


def solver(
    rows: TurnRows,
    options: EditorConfig,
    shards: Mapping[str, LinearShard] | None = None,
    collectives: Collectives | None = None,
    reference: Mapping[str, PreservingRidge] | None = None,
    neighbours: Mapping[str, PreservingRidge] | None = None,
) -> TurnSolver:
    shards = shards or {name: LinearShard((D_IN, D_OUT)) for name in NAMES}
    times = len(rows.losses) // COUNTS["answer"]
    sizes = {site: sizes * times for site, sizes in GROUPS.items()}
    collectives = collectives or SingleWorker()
    statistics = LifelongStatistics().with_turn(rows, sizes, shards, options, collectives)
    return TurnSolver(statistics, shards, options, collectives, reference, neighbours=neighbours)


def expected_targets(rows: TurnRows, name: str, rate: float = RATE) -> Tensor:
    """Normalized by the plain mean and deviation of all rows of the modules that are edited at the same site."""
    same = [other for other in NAMES if rows.site(other) == rows.site(name)]
    z = torch.cat([torch.cat((rows.keys[other], rows.value_gradients[other]), 1) for other in same]).double()
    own = torch.cat((rows.keys[name], rows.value_gradients[name]), 1).double()
    normal = (own - z.mean(0)) / (z.std(0) + torch.finfo(torch.float32).eps)
    return -rate * normal[:, :D_IN].square().sum(1, keepdim=True) * normal[:, D_IN:]


def least_squares(rows: TurnRows, name: str, goal: Tensor, held_back: Tensor) -> Tensor:
    """Independent oracle: the rows' targets, and further lines ``(h, d_in)`` whose output is not to change."""
    a = torch.cat((rows.keys[name].double(), held_back.double()))
    b = torch.cat((goal, torch.zeros(len(held_back), D_OUT, dtype=torch.float64)))
    return torch.linalg.lstsq(a, b).solution


def ridge_lines(ridge: float) -> Tensor:
    return ridge**0.5 * torch.eye(D_IN, dtype=torch.float64)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("form", ["auto", "row", "d_in"])
@pytest.mark.parametrize("times", [1, 5], ids=["fewer rows than features", "more rows than features"])
@pytest.mark.parametrize("ridge", [1.0, 50.0])
def test_shifts_solve_the_ridge_problem_for_the_targets(form: str, times: int, ridge: float) -> None:
    rows = turn_rows(times=times)
    found = solver(rows, config(solve=form, ridge=ridge)).solve(rows)
    for name in NAMES:
        expected = least_squares(rows, name, expected_targets(rows, name), ridge_lines(ridge))
        assert relative(found.shifts[name].dense(), expected) < 1e-5
        assert found.norms[name] == pytest.approx(float(expected.norm()), rel=1e-5)


def test_auto_takes_the_smaller_system() -> None:
    for times, width in ((1, COUNTS["answer"]), (5, D_IN)):
        rows = turn_rows(times=times)
        assert {shift.left.shape[1] for shift in solver(rows, config()).solve(rows).shifts.values()} == {width}


def test_modules_at_subjects_have_a_rate_and_moments_of_their_own() -> None:
    rows = turn_rows(at_subject=("b",))
    found = solver(rows, config(subject_modules=("b",), subject_scale=0.3)).solve(rows)
    for name, rate in (("a", RATE), ("b", 0.3 * RATE)):
        assert relative(found.shifts[name].dense(), least_squares(rows, name, expected_targets(rows, name, rate), ridge_lines(1.0))) < 1e-5


def test_rows_that_are_not_pending_have_targets_of_zero() -> None:
    rows = turn_rows(at_subject=("b",))
    pending: dict[Site, Tensor] = {"answer": torch.tensor([1.0, 0, 1, 0, 0, 1]), "subject": torch.tensor([0.0, 1, 1, 0])}
    found = solver(rows, config(subject_scale=1.0)).solve(rows, pending)
    for name in NAMES:
        goal = expected_targets(rows, name) * pending[rows.site(name)].unsqueeze(1).double()
        assert relative(found.shifts[name].dense(), least_squares(rows, name, goal, ridge_lines(1.0))) < 1e-5


@pytest.mark.parametrize("form", ["exact", "sketch"])
@pytest.mark.parametrize(("with_text", "with_neighbours"), [(False, False), (True, False), (True, True)])
def test_a_preserving_ridge_holds_back_change_on_tokens_text_and_neighbours(form: str, with_text: bool, with_neighbours: bool) -> None:
    rows, options = turn_rows(), config(preserve=form, preserve_weight=30.0, preserve_rank=D_IN, ridge=2.0)
    text = torch.randn(20, D_IN, generator=torch.Generator().manual_seed(5)) + 1
    features = {name: Features(LinearShard((D_IN, D_OUT)), "keys", SingleWorker()) for name in NAMES}
    keys = [(name, piece) for piece in text.split(8) for name in NAMES]
    reference = ridges_of_keys(keys, features, form, D_IN) if with_text else {}
    others = torch.randn(5, D_IN, generator=torch.Generator().manual_seed(6))
    neighbours = ridges_of_keys([(name, others) for name in NAMES], features, form, D_IN) if with_neighbours else {}
    one = solver(rows, options, reference=reference, neighbours=neighbours)
    for found in (one.solve(rows), one.solve(rows)):  # a second pass uses the system of the first
        for name in NAMES:
            lines = [ridge_lines(2.0), (30.0 / 9) ** 0.5 * rows.tokens[name].double()]
            lines += [(30.0 * TEXT_WEIGHT / 20) ** 0.5 * text.double()] if with_text else []
            lines += [others.double()] if with_neighbours else []
            assert relative(found.shifts[name].dense(), least_squares(rows, name, expected_targets(rows, name), torch.cat(lines))) < 1e-4


def test_whitening_replaces_the_deviations_of_value_gradients() -> None:
    rows = turn_rows(times=4)
    found = solver(rows, config(whiten=True)).solve(rows)
    for name in NAMES:
        gradients = rows.value_gradients[name].double()
        second = gradients.T @ gradients / len(gradients)
        values, vectors = torch.linalg.eigh(second + 0.01 * second.diagonal().mean() * torch.eye(D_OUT))
        whitened = gradients @ vectors @ torch.diag(values**-0.5) @ vectors.T
        z = torch.cat([rows.keys[other] for other in NAMES]).double()
        norms = ((rows.keys[name].double() - z.mean(0)) / z.std(0)).square().sum(1, keepdim=True)
        assert relative(found.shifts[name].dense(), least_squares(rows, name, -RATE * norms * whitened, ridge_lines(1.0))) < 1e-4


def test_a_module_without_rows_is_not_changed() -> None:
    rows = turn_rows()
    whole = solver(rows, config())
    none = turn_rows(at_subject=NAMES)
    empty = TurnRows(none.sites, {n: k[:0] for n, k in none.keys.items()}, {n: g[:0] for n, g in none.value_gradients.items()}, *[rows.losses] * 3)
    found = whole.solve(empty)
    assert {name: shift.dense().abs().sum().item() for name, shift in found.shifts.items()} == dict.fromkeys(NAMES, 0.0)
    assert found.norms == dict.fromkeys(NAMES, 0.0)


def test_the_total_of_passes_is_their_sum() -> None:
    rows, later = turn_rows(), turn_rows(seed=1)
    one = solver(rows, config())
    passes = [one.solve(rows), one.solve(later), Solution.empty()]
    total = one.total(passes)
    for name in NAMES:
        expected = (passes[0].shifts[name].dense() + passes[1].shifts[name].dense()).double()
        assert relative(total.shifts[name].dense(), expected) < 1e-6
        assert total.norms[name] == pytest.approx(float(expected.norm()), rel=1e-5)


# --- shards

KEYS = tuple((r,) for r in consecutive([5, 7]))
VALUES = tuple((r,) for r in consecutive([4, 3]))
AXES: dict[str, Callable[[int], LinearShard]] = {
    "a": lambda rank: LinearShard((D_IN, D_OUT), "keys", KEYS, rank),
    "b": lambda rank: LinearShard((D_IN, D_OUT), "values", VALUES, rank),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "published": {},
    "exact": {"preserve": "exact", "preserve_weight": 30.0},
    "sketch": {"preserve": "sketch", "preserve_weight": 30.0, "preserve_rank": 6},
    "whitened": {"whiten": True},
}


def on_shard(options: EditorConfig, worker: EmulatedWorker) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Each module's slice of the shift, laid out over all features, and the norms."""
    shards = {name: make(worker.shard) for name, make in AXES.items()}
    rows = turn_rows(shards)
    found = solver(rows, options, shards, worker).solve(rows)
    whole = {name: torch.zeros(D_IN, D_OUT) for name in shards}
    for name, shard in shards.items():
        whole[name][shard.key_features.unsqueeze(1), shard.value_features - D_IN] = found.shifts[name].dense()
    return whole, found.norms


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_two_shards_find_the_slices_of_what_one_worker_finds(options: dict[str, Any]) -> None:
    rows = turn_rows()
    expected = solver(rows, config(**options)).solve(rows)
    (first, first_norms), (second, second_norms) = run_workers(lambda worker: on_shard(config(**options), worker), num_shards=2)
    assert first_norms == second_norms
    for name in NAMES:
        dense = expected.shifts[name].dense().double()
        assert relative(first[name] + second[name], dense) < 1e-5
        assert first_norms[name] == pytest.approx(float(dense.norm()), rel=1e-5)


@pytest.mark.parametrize("num_shards", [1, 2])
def test_a_key_that_is_not_finite_refuses_the_turn_on_every_shard(num_shards: int) -> None:
    def refused(worker: EmulatedWorker) -> str:
        shards = {name: make(worker.shard) if num_shards == 2 else LinearShard((D_IN, D_OUT)) for name, make in AXES.items()}
        rows = turn_rows(shards)
        one = solver(rows, config(), shards, worker)
        if worker.shard == 0:
            rows.keys["a"][2, 1] = torch.inf
        with pytest.raises(TurnRefused) as caught:
            one.solve(rows)
        return str(caught.value)

    assert run_workers(refused, num_shards=num_shards) == ["the shift of a is not finite"] * num_shards
