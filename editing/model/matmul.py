"""Matrix products at the CPU's full speed, in float32 and in bfloat16.

CPU builds of torch multiply float32 matrices with MKL, which uses half the vector width of AMD processors. oneDNN, which is part
of torch too, uses all of it. *Measured* (docs/LOG.md): 95 against 210 GFLOP/s a core. On such a machine, inside
:func:`full_speed`, large products go to oneDNN in the forward and in the backward pass.
"""

import functools
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_BLOCK_ELEMENTS = 2**22
"""Elements of the right factor that are in float32 at a time."""

_MIN_ELEMENTS = 2**16
"""Elements of the right factor below which a product stays with MKL, since the change would cost more than it gains."""


def full_speed(device: torch.device, model: nn.Module | None = None) -> AbstractContextManager[object]:
    """A context in which products on ``device`` run at full speed. Changes results by rounding only.

    Args:
        device: Where the products are computed.
        model: Whose weights are the right factors. If none of them is large, every product stays with MKL, and no operation is
            looked at, which would take longer than the operations of a tiny model.
    """
    if device.type != "cpu":
        return nullcontext()
    slow = _slow_dtypes()
    return _Products(slow) if slow and (model is None or _has_large_weights(model, slow)) else nullcontext()


def _has_large_weights(model: nn.Module, dtypes: Collection[torch.dtype]) -> bool:
    return any(p.dim() == 2 and p.numel() >= _MIN_ELEMENTS and p.dtype in dtypes for p in model.parameters())


class _Products(TorchDispatchMode):
    """Takes large products of some precisions from torch."""

    def __init__(self, dtypes: Collection[torch.dtype]) -> None:
        super().__init__()
        self._dtypes = dtypes

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.ops.aten.mm.default and self._takes(*args):
            return _product(args[0], args[1], None)
        if func is torch.ops.aten.addmm.default and not kwargs and args[0].dim() == 1 and self._takes(*args[1:]):
            return _product(args[1], args[2], args[0])
        return func(*args, **(kwargs or {}))

    def _takes(self, left: Tensor, right: Tensor) -> bool:
        return left.dtype == right.dtype and left.dtype in self._dtypes and right.numel() >= _MIN_ELEMENTS and left.shape[0] > 0


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    if left.dtype == torch.bfloat16:
        return _product_in_float32(left, right, bias)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")
    return result


def _product_in_float32(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """``left @ right + bias``, summed in float32, with at most a block of the right factor in float32 at a time."""
    depth, width = right.shape
    result = torch.zeros(len(left), width) if bias is None else bias.float().repeat(len(left), 1)
    step = max(1, _BLOCK_ELEMENTS // min(depth, width))
    if width > depth:
        for a in range(0, width, step):
            result[:, a : a + step] += left.float() @ right[:, a : a + step].float()
    else:
        for a in range(0, depth, step):
            result += left[:, a : a + step].float() @ right[a : a + step].float()
    return result.to(left.dtype)


def _slow_dtypes() -> frozenset[torch.dtype]:
    """Precisions in which torch's own products are slow on this machine."""
    return frozenset([torch.float32] * _mkl_is_slow() + [torch.bfloat16] * _bfloat16_is_slow())


@functools.cache
def _bfloat16_is_slow() -> bool:
    """As :func:`_mkl_is_slow`."""
    return not (_exists(lambda: torch.ops.mkldnn._is_mkldnn_bf16_supported) and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def _mkl_is_slow() -> bool:
    """Decided by the kind of machine, not by a timing, so that every run on it computes the same bits."""
    has_operator = torch.backends.mkldnn.is_available() and _exists(lambda: torch.ops.mkldnn._linear_pointwise)
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return has_operator and wide and torch.backends.mkl.is_available() and _vendor() == "AuthenticAMD"


def _exists(operator: Callable[[], Any]) -> bool:
    try:
        operator()
    except AttributeError:
        return False
    return True


def _vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
