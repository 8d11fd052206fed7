"""Whitened value gradients have the inverse root of their second moment taken out, and point downhill."""

import pytest
import torch

from editing import EditorConfig, InputError
from editing.method.features import Features
from editing.method.second_moments import SecondMoment
from editing.method.whitening import MAX_FEATURES, check_width, whiten
from editing.sharding.collectives import SingleWorker
from editing.sharding.shards import LinearShard
from editing.turn import Turn, tokenize
from tests.support.small_editor import editor, requests

FEATURES = Features(LinearShard((3, 12)), "values", SingleWorker())


def gradients(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=generator) + 2 * torch.eye(12)
    return 1e-3 * torch.randn(count, 12, generator=generator) @ mixing


def test_whitened_gradients_are_those_of_a_root_found_by_iteration() -> None:
    """Independent oracle: Newton's iteration for the inverse root (Denman and Beavers 1976), no eigenvectors."""
    rows = gradients(400)
    second = rows.double().T @ rows.double() / 400
    damped = second + 0.01 * second.diagonal().mean() * torch.eye(12).double()
    root, inverse = damped, torch.eye(12).double()
    for _ in range(60):
        root, inverse = (root + torch.linalg.inv(inverse)) / 2, (inverse + torch.linalg.inv(root)) / 2
    moment = SecondMoment.empty(12).add(rows[:150]).add(rows[150:])
    expected = rows.double() @ inverse
    assert (whiten(rows, moment, FEATURES).double() - expected).norm() / expected.norm() < 1e-6


def test_features_become_uncorrelated_and_rows_point_downhill() -> None:
    rows = gradients(400)
    whitened = whiten(rows, SecondMoment.empty(12).add(rows), FEATURES).double()
    second = whitened.T @ whitened / 400
    before = rows.T @ rows
    spread = lambda m: float(torch.linalg.cond(m))  # noqa: E731
    assert spread(second) < 0.1 * spread(before)
    assert float(second.trace()) == pytest.approx(12, rel=0.2)
    assert ((whitened * rows).sum(1) > 0).all()


def test_a_small_gradient_stays_small_among_few() -> None:
    rows = gradients(4)
    rows[0] *= 1e-3
    sizes = whiten(rows, SecondMoment.empty(12).add(rows), FEATURES).norm(dim=1)
    assert sizes[0] < 0.1 * sizes[1:].min()


def test_whitening_edits_and_is_another_edit() -> None:
    plain, whitening = editor(), editor(whiten=True)
    plain.apply(requests())
    (report,) = whitening.apply(requests())
    (prepared,) = whitening.prepare([Turn.of([tokenize(whitening.tokenizer, r, max_tokens=None) for r in requests()])])
    assert float(whitening.capture(prepared).losses.mean()) < report.loss
    assert whitening.digests() != plain.digests()
    assert {second.count for second in whitening.lifelong.whitening.values()} == {report.rows}


def test_modules_that_are_too_wide_are_refused() -> None:
    check_width({"narrow": LinearShard((8, MAX_FEATURES))})
    with pytest.raises(InputError, match=f"whiten: wide has {MAX_FEATURES + 1} outputs, expected at most {MAX_FEATURES}"):
        check_width({"narrow": LinearShard((8, 8)), "wide": LinearShard((8, MAX_FEATURES + 1))})


@pytest.mark.parametrize(
    ("field", "value"), [("whiten", 1), ("preserve", "much"), ("preserve_rank", 0), ("preserve_weight", 0.0), ("passes", 0), ("margin", -1.0)]
)
def test_options_are_checked(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        EditorConfig(modules=("x",), learning_rate=1.0, **{field: value})
