"""The detour of large products gives the same numbers, forward and back."""

import pytest
import torch

from editing.model import matmul
from editing.model.matmul import full_speed


@pytest.fixture
def detour(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(matmul, "_mkl_is_slow", lambda: True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 700), (2, 5, 700)])
def test_linears_and_their_gradients_are_the_same_to_rounding(shape: tuple[int, ...], bias: bool, detour: None) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(700, 300, bias=bias).requires_grad_(False)
    results = []
    for context in (torch.autograd.grad_mode.inference_mode(False), full_speed(torch.device("cpu"))):
        x = torch.ones(shape).mul_(torch.arange(700) / 700).requires_grad_()
        with context:
            y = linear(x)
            (gradient,) = torch.autograd.grad(y.square().sum(), x)
        results.append((y.detach(), gradient))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_large_products_take_the_detour_and_small_or_double_ones_do_not(detour: None, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, ...]] = []
    plain = matmul._product
    monkeypatch.setattr(matmul, "_product", lambda *args: taken.append(tuple(args[1].shape)) or plain(*args))
    with full_speed(torch.device("cpu")):
        torch.ones(4, 300) @ torch.ones(300, 300)
        torch.ones(4, 30) @ torch.ones(30, 30)
        torch.ones(4, 300, dtype=torch.float64) @ torch.ones(300, 300, dtype=torch.float64)
    assert taken == [(300, 300)]


def test_a_model_is_looked_into_only_if_it_has_a_large_weight(detour: None) -> None:
    small, large = torch.nn.Linear(30, 30), torch.nn.Sequential(torch.nn.Linear(30, 30), torch.nn.Linear(300, 300))
    for model, looked_into in ((small, False), (large, True)):
        with full_speed(torch.device("cpu"), model) as context:
            assert (context is not None) is looked_into


def test_other_devices_are_left_alone(detour: None) -> None:
    with full_speed(torch.device("meta")) as context:
        assert context is None
