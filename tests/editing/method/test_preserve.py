"""The preserving ridge solves the problem that it states; its sketch keeps the promises of frequent directions."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from editing import Editor
from editing.config import MethodOptions
from editing.memory.budget import Footprint, Work, memory_breakdown, second_moments_bytes
from editing.method.features import Features
from editing.method.preserve import TEXT_WEIGHT, ExactRidge, PreservingRidge, SketchRidge, empty_ridge
from editing.method.shift import solve_rows
from editing.model.decoder import Decoder
from editing.model.modules import resolve
from editing.reference_text import read_text
from editing.sharding.collectives import SingleWorker
from editing.sharding.shards import LinearShard
from editing.turn import Turn, tokenize
from tests.support.small_editor import MODULES, editor, requests

D_IN, D_OUT = 24, 7
FEATURES = Features(LinearShard((D_IN, D_OUT)), "keys", SingleWorker())


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    """Keys whose spectrum falls, as that of activations does."""
    generator = torch.Generator().manual_seed(seed)
    scales = 4.0 * 0.7 ** torch.arange(D_IN)
    basis = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=generator)).Q
    return torch.randn(count, D_IN, generator=generator) * scales @ basis


def ridge_of(form: str, seen: torch.Tensor, rank: int = D_IN, pieces: int = 3) -> PreservingRidge:
    ridge = empty_ridge(form, FEATURES, rank)
    for piece in seen.chunk(pieces):
        ridge = ridge.update(piece, FEATURES)
    return ridge


def solved(
    ridge: PreservingRidge, keys: torch.Tensor, goal: torch.Tensor, strength: float, weight: float, text: PreservingRidge | None = None
) -> torch.Tensor:
    left, gram = ridge.system(ridge=strength, weight=weight, text=text).solve(keys, FEATURES)
    return solve_rows(left.float(), gram, goal, ridge=1.0).dense().double()


def least_squares(seen: torch.Tensor, keys: torch.Tensor, goal: torch.Tensor, strength: float, weight: float) -> torch.Tensor:
    """Independent oracle: every token seen is a line of one large least-squares problem, with target 0."""
    a = torch.cat((keys.double(), strength**0.5 * torch.eye(D_IN).double(), (weight / len(seen)) ** 0.5 * seen.double()))
    b = torch.cat((goal.double(), torch.zeros(D_IN + len(seen), D_OUT).double()))
    return torch.linalg.lstsq(a, b).solution


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("form", ["exact", "sketch"])
@pytest.mark.parametrize("rows", [1, 9, 40])
@pytest.mark.parametrize(("strength", "weight"), [(1.0, 1000.0), (10.0, 1.0), (1.0, 1e-6)])
def test_every_token_seen_counts_as_one_that_shall_not_change(form: str, rows: int, strength: float, weight: float) -> None:
    seen, keys = tokens(200), tokens(rows, seed=1)
    goal = torch.randn(rows, D_OUT, generator=torch.Generator().manual_seed(2))
    found = solved(ridge_of(form, seen), keys, goal, strength, weight)
    assert relative(found, least_squares(seen, keys, goal, strength, weight)) < 1e-5


@pytest.mark.parametrize("form", ["exact", "sketch"])
@pytest.mark.parametrize("num_seen", [0, 200])
def test_a_text_counts_by_its_weight_however_many_tokens_were_seen(form: str, num_seen: int) -> None:
    seen, text, keys = tokens(num_seen), tokens(50, seed=3), tokens(9, seed=1)
    goal = torch.randn(9, D_OUT, generator=torch.Generator().manual_seed(2))
    found = solved(ridge_of(form, seen, pieces=1), keys, goal, 1.0, 300.0, ridge_of(form, text))
    both = torch.cat((seen / max(1, num_seen) ** 0.5, (TEXT_WEIGHT / 50) ** 0.5 * text))
    assert relative(found, least_squares(both, keys, goal, 1.0, 300.0 * len(both))) < 1e-5


def test_nothing_seen_is_the_plain_ridge() -> None:
    keys, goal = tokens(5), torch.randn(5, D_OUT)
    for form in ("exact", "sketch"):
        assert relative(solved(empty_ridge(form, FEATURES, 4), keys, goal, 2.0, 1e3), least_squares(keys[:1] * 0, keys, goal, 2.0, 1e3)) < 1e-5


@pytest.mark.parametrize("rank", [2, 6, 12])
def test_a_sketch_is_below_the_sum_and_within_its_bound(rank: int) -> None:
    seen = tokens(500).double()
    sketch = ridge_of("sketch", seen, rank, pieces=11)
    assert isinstance(sketch, SketchRidge)
    assert len(sketch.directions) == rank
    residual = seen.T @ seen - sketch.directions.T @ sketch.directions
    values, spectrum = torch.linalg.eigvalsh(residual), torch.linalg.svdvals(seen).square()
    assert values.min() > -1e-9 * spectrum[0]
    assert all(values.max() <= spectrum[k:].sum() / (rank - k) for k in range(rank))
    torch.testing.assert_close(sketch.squares, seen.square().sum(0))


def test_a_direction_that_comes_in_small_portions_is_not_overlooked() -> None:
    """Keeping the largest directions as they are would drop each portion, and with them all."""
    eye = torch.eye(D_IN).double()
    seen = torch.cat((eye[:2], 0.6 * eye[2].repeat(200, 1)))
    sketch = ridge_of("sketch", seen, rank=2, pieces=1)
    assert isinstance(sketch, SketchRidge)
    residual = seen.T @ seen - sketch.directions.T @ sketch.directions
    assert torch.linalg.eigvalsh(residual).max() <= seen.square().sum() / 2


def test_directions_of_a_sketch_are_rows_to_another_one() -> None:
    """Merged sketches keep the bound of one that has seen everything."""
    seen = tokens(300).double()
    first, second = ridge_of("sketch", seen[:100], 8), ridge_of("sketch", seen[100:], 8)
    merged = first.update(second.directions, FEATURES).directions
    spectrum = torch.linalg.svdvals(seen).square()
    residual = torch.linalg.eigvalsh(seen.T @ seen - merged.T @ merged)
    assert residual.min() > -1e-9 * spectrum[0]
    assert all(residual.max() <= spectrum[k:].sum() / (8 - k) for k in range(8))


def test_a_thin_sketch_comes_near_to_the_exact_form_and_nearer_with_its_rank() -> None:
    seen, keys = tokens(400), tokens(9, seed=1)
    goal = torch.randn(9, D_OUT, generator=torch.Generator().manual_seed(2))

    def cost(ridge: PreservingRidge) -> float:
        """What the preserving ridge minimizes, with all tokens in it."""
        shift = solved(ridge, keys, goal, 1.0, 300.0)
        kept = (seen.double() @ shift).square().sum() / len(seen)
        return float((keys.double() @ shift - goal.double()).square().sum() + shift.square().sum() + 300.0 * kept)

    best, plain = cost(ridge_of("exact", seen)), cost(empty_ridge("exact", FEATURES, 1))
    excess = [cost(ridge_of("sketch", seen, rank)) - best for rank in (2, 6, 12, 20)]
    assert excess == sorted(excess, reverse=True)
    assert excess[0] < 0.05 * (plain - best)
    assert 0 <= excess[2] < 1e-3 * (plain - best)


def test_auto_takes_the_exact_form_for_few_inputs_only() -> None:
    wide = Features(LinearShard((14_336, 4)), "keys", SingleWorker())
    assert isinstance(empty_ridge("auto", FEATURES, 4), ExactRidge)
    assert isinstance(empty_ridge("auto", wide, 4), SketchRidge)


def test_the_keys_of_all_tokens_are_those_of_a_plain_forward_pass() -> None:
    one = editor(preserve="exact", batch_tokens=24)
    turn = Turn.of([tokenize(one.tokenizer, r, max_tokens=None) for r in requests()])
    name, module = next(iter(one.modules.items()))
    seen: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0][0].clone()))
    with torch.no_grad():
        for sequence in turn.sequences:
            one.model(input_ids=torch.tensor([sequence.input_ids]))
    hook.remove()
    expected = torch.cat(seen)
    rows = one.capture(one.prepare([turn])[0], tokens=True)
    torch.testing.assert_close(rows.tokens[name], expected, rtol=1e-4, atol=1e-5)
    one.apply_turn(one.prepare([turn])[0])
    ridge = one.lifelong.preserved[name]
    assert ridge.count == len(expected)
    torch.testing.assert_close(ridge.moment.total, expected.T.double() @ expected.double(), rtol=1e-4, atol=1e-5)


def change_on(one: Editor, other: Editor, prompts: list[str]) -> float:
    """Mean squared change of logits on text that is no answer."""
    total = 0.0
    for prompt in prompts:
        ids = torch.tensor([one.tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            total += float((one.model(input_ids=ids).logits - other.model(input_ids=ids).logits)[0, :-1].square().mean())
    return total


@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_prompts_change_less_and_answers_are_still_learned(form: str) -> None:
    untouched, plain, preserving = editor(), editor(), editor(preserve=form, preserve_rank=8, preserve_weight=30.0)
    (published,), (report,) = plain.apply(requests()), preserving.apply(requests())
    prompts = [request.prompt for request in requests()]
    assert change_on(preserving, untouched, prompts) < 0.8 * change_on(plain, untouched, prompts)
    assert report.efficacy_after > report.efficacy_before
    assert published.efficacy_before == report.efficacy_before


def text_file(folder: Path) -> Path:
    """Passages of unequal length, one of which is longer than any is kept in one piece."""
    path = folder / "text.txt"
    path.write_text(
        "\n\n".join(("the sea is cold in winter", "", "short\n", "a very long one " * 700, "and the last passage of them all")), encoding="utf-8"
    )
    return path


@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_the_keys_of_a_text_are_those_of_the_unedited_model(form: str, tmp_path: Path) -> None:
    one = editor(preserve=form, preserve_rank=64, preserve_text=str(text_file(tmp_path)), batch_tokens=600, edits_per_turn=4)
    modules, seen = list(one.modules), {name: list[torch.Tensor]() for name in one.modules}
    hooks = [m.register_forward_hook(lambda _m, inputs, _out, name=name: seen[name].append(inputs[0][0].clone())) for name, m in one.modules.items()]
    with torch.no_grad():
        for passage in one.preserved.text.passages:
            one.model(input_ids=torch.tensor([passage.input_ids]))
    for hook in hooks:
        hook.remove()
    one.apply(requests())
    one.preserved._of_text = None  # as in a run that is resumed
    assert sum(len(p.input_ids) for p in one.preserved.text.passages) > 2 * 2048
    for name in modules:
        expected = torch.cat(seen[name]).double()
        ridge = one.preserved.of_text()[name]
        assert ridge.count == len(expected)
        found = ridge.squares if isinstance(ridge, SketchRidge) else ridge.moment.total.diagonal()
        torch.testing.assert_close(found, expected.square().sum(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_a_text_changes_less_where_it_is_preserved(form: str) -> None:
    text = [passage.strip() for passage in read_text("everyday").split("\n\n")]
    untouched = editor()
    with_text, without = (editor(preserve=form, preserve_rank=32, preserve_weight=300.0, preserve_text=t) for t in ("everyday", "none"))
    for one in (with_text, without):
        one.apply(requests())
    assert change_on(with_text, untouched, text) < 0.8 * change_on(without, untouched, text)


def test_without_a_preserving_ridge_no_text_is_observed() -> None:
    one = editor(preserve="off", preserve_text="everyday")
    one.apply(requests())
    assert not one.preserved.of_text()


@pytest.mark.parametrize("form", ["exact", "sketch"])
@pytest.mark.parametrize("text", ["none", "everyday"])
def test_batches_make_no_difference(form: str, text: str) -> None:
    one, two = (editor(preserve=form, preserve_rank=8, preserve_text=text, edits_per_turn=4, batch_tokens=size) for size in (16, 2048))
    one.apply(requests())
    two.apply(requests())
    for name, weight in one.weights.items():
        change = two.weights[name] - two.weights.originals[name]
        assert relative(weight - one.weights.originals[name], change) < 1e-4


@pytest.mark.parametrize(
    "options",
    [{"preserve": "exact"}, {"preserve": "sketch", "preserve_rank": 5}, {"preserve": "exact", "preserve_text": "everyday"}, {"whiten": True}],
)
def test_what_is_kept_of_a_module_is_counted(options: dict[str, object]) -> None:
    one = editor(**options)
    one.apply(requests())
    tensors = [t for ridge in one.lifelong.preserved.values() for t in (getattr(ridge, "directions", None), getattr(ridge, "squares", None))]
    ridges = (*one.lifelong.preserved.values(), *one.preserved.of_text().values())
    tensors += [ridge.moment.total for ridge in ridges if isinstance(ridge, ExactRidge)]
    tensors += [second.total for second in one.lifelong.whitening.values()]
    kept = sum(t.numel() * t.element_size() for t in tensors if t is not None)
    counted = sum(second_moments_bytes(part.shape, one.config, num_tokens=0) for part in one.shards.values())
    assert 2 * kept <= counted <= 9 * kept  # the old one, the new one, and room to make it


def test_a_model_within_a_budget_has_room_for_the_copies_of_further_passes() -> None:
    decoder = Decoder(editor().model)
    modules = resolve(decoder, MODULES)
    footprint = Footprint.of(decoder, modules, torch.float32)
    work = Work(batch_tokens=64, edits_per_turn=5, process=0)
    once, more = (sum(memory_breakdown(footprint, replace(work, method=MethodOptions(passes=p)), 0, True).values()) for p in (1, 4))
    assert more - once == sum(module.weight.numel() * 4 for module in modules.values())
    preserving = memory_breakdown(footprint, replace(work, method=MethodOptions(preserve="exact", whiten=True)), 0, True)
    assert preserving["second moments"] > 8 * sum(m.weight.shape[1] ** 2 + m.weight.shape[0] ** 2 for m in modules.values())
