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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("block", [2**10, 2**22])
@pytest.mark.parametrize(("depth", "width"), [(700, 300), (300, 700)])
def test_a_bfloat16_product_is_the_exact_one_rounded_once(depth: int, width: int, block: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "_bfloat16_is_slow", lambda: True)
    monkeypatch.setattr(matmul, "_BLOCK_ELEMENTS", block)
    torch.manual_seed(0)
    linear = torch.nn.Linear(depth, width, bias=bias).to(torch.bfloat16).requires_grad_(False)
    x = torch.randn(2, 5, depth).to(torch.bfloat16).requires_grad_()
    given = torch.randn(2, 5, width).to(torch.bfloat16)
    with full_speed(torch.device("cpu"), linear):
        y = linear(x)
        (gradient,) = torch.autograd.grad(y, x, given)
    expected = x.detach().double() @ linear.weight.double().T + (linear.bias.double() if bias else 0)
    for found, exact in ((y.detach(), expected), (gradient, given.double() @ linear.weight.double())):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-5)  # half a unit in the last place, and float32's rounding


def test_bfloat16_takes_the_detour_only_where_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "_mkl_is_slow", lambda: False)
    half, full = (torch.nn.Linear(300, 300, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    for model, slow, looked_into in ((half, True, True), (half, False, False), (full, True, False)):
        monkeypatch.setattr(matmul, "_bfloat16_is_slow", lambda slow=slow: slow)
        with full_speed(torch.device("cpu"), model) as context:
            assert (context is not None) is looked_into
