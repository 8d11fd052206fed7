"""Float32 matrix products at the CPU's full speed.

CPU builds of torch multiply float32 matrices with MKL, which uses half the vector width of AMD processors. oneDNN, which is part
of torch too, uses all of it. *Measured* (docs/LOG.md): 95 against 210 GFLOP/s a core. On such a machine, inside
:func:`full_speed`, large products go to oneDNN in the forward and in the backward pass.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_MIN_ELEMENTS = 2**16
"""Elements of the right factor below which a product stays with MKL, since the change would cost more than it gains."""


def full_speed(device: torch.device, model: nn.Module | None = None) -> AbstractContextManager[object]:
    """A context in which float32 products on ``device`` run at full speed. Changes results by rounding only.

    Args:
        device: Where the products are computed.
        model: Whose weights are the right factors. If none of them is large, every product stays with MKL, and no operation is
            looked at, which would take longer than the operations of a tiny model.
    """
    wanted = device.type == "cpu" and _mkl_is_slow() and (model is None or _has_large_weights(model))
    return _OneDnnProducts() if wanted else nullcontext()


def _has_large_weights(model: nn.Module) -> bool:
    return any(p.dim() == 2 and p.numel() >= _MIN_ELEMENTS for p in model.parameters())


class _OneDnnProducts(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.ops.aten.mm.default and _is_large(*args):
            return _product(args[0], args[1], None)
        if func is torch.ops.aten.addmm.default and not kwargs and args[0].dim() == 1 and _is_large(*args[1:]):
            return _product(args[1], args[2], args[0])
        return func(*args, **(kwargs or {}))


def _is_large(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype == torch.float32 and right.numel() >= _MIN_ELEMENTS and left.shape[0] > 0


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")
    return result


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
