"""An accelerator in pure Python: the device path runs, mixes of devices are refused, and copies and waits are counted, without a GPU.

    with accelerator() as traffic:
        editor = Editor.from_pretrained(folder, device="emu", ...)
        editor.apply(requests)
    traffic.counts      copies to the device, copies to the host, waits of the host for the device; and where in the project each came from

A tensor "on" the device ``emu:0`` holds one in the CPU's memory, so each operator gives the CPU's own bits. It is as strict as a GPU:

    * All tensors of an operator must be on the device. A CPU tensor of no dimension may take part elementwise, and CPU indices may index.
    * Its memory cannot be read from the host: ``numpy`` is refused.

A CUDA device differs in what is beyond this: rounding, memory, streams, and which operators wait. What is counted as a wait here is what
makes CUDA wait by its nature, since the host needs a number of the device: ``item``, ``tolist``, ``bool``, ``equal``, ``nonzero``, indexing
with a mask, and factorizations that check whether they have succeeded.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from editing.files import pretrained
from editing.memory import streaming

NAME = "emu"
_ROOT = str(Path(__file__).parents[2])
_CPU = torch.device("cpu")
_PLACEMENT = {"device", "pin_memory", "non_blocking"}
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_INDEXED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default, torch.ops.aten._index_put_impl_.default}
_WAITS = {
    "_local_scalar_dense",
    "equal",
    "nonzero",
    "masked_select",
    "_linalg_check_errors",
    "_linalg_eigh",
    "_linalg_svd",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
}
_LIBRARY = torch.library.Library("aten", "IMPL")
_FROM_HOST = {torch.tensor, torch.as_tensor, torch.asarray}


class Traffic:
    """What went between host and device.

    Attributes:
        counts: By kind: ``to_device``, ``to_host`` and ``waits``. A copy to the host is not counted as a wait too, though it is one.
        places: By kind and line of the project, the same.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.places: Counter[tuple[str, str]] = Counter()

    def add(self, kind: str) -> None:
        """Count one."""
        self.counts[kind] += 1
        self.places[kind, _place()] += 1

    def clear(self) -> None:
        """Count from 0."""
        self.counts.clear()
        self.places.clear()

    @property
    def total(self) -> int:
        """All of them."""
        return self.counts.total()


_traffic = Traffic()


class EmulatedTensor(torch.Tensor):
    """A tensor on the device.

    Attributes:
        held: The same in the CPU's memory.
    """

    held: Tensor

    @staticmethod
    def __new__(cls: type["EmulatedTensor"], held: Tensor) -> "EmulatedTensor":
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        found: EmulatedTensor = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=f"{NAME}:0", **shape)  # type: ignore[attr-defined]
        found.held = held
        return found

    def __init__(self, held: Tensor) -> None: ...

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{NAME}:{self.held!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, other: "EmulatedTensor") -> None:
        if not isinstance(other, EmulatedTensor):
            raise RuntimeError(f"data: expected a tensor on {NAME}, found one on {other.device}")
        torch.Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.held = other.held

    def tolist(self) -> Any:
        _traffic.add("to_host")
        return self.held.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {NAME} device type tensor to numpy; copy it to host memory first")


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator of which an argument is on the device, or whose result will be."""
    tensors = _tensors([*args, *kwargs.values()])
    inside = [t for t in tensors if isinstance(t, EmulatedTensor)]
    target = kwargs.get("device")
    to_device = bool(inside) if target is None else target.type == NAME
    if not inside and not to_device:
        return func(*args, **kwargs)
    if func in _COPIES:
        _count_copy(func, args, to_device)
    elif inside:
        _check_together(func, args, tensors, len(inside))
        _count_waits(func, args)
    if torch.Tag.inplace_view in func.tags:
        raise NotImplementedError(f"{func}: the emulated accelerator changes no tensor's shape in place")
    given = {name: _held(value) for name, value in kwargs.items() if name not in _PLACEMENT}
    if target is not None:
        given["device"] = _CPU
    result = func(*map(_held, args), **given)
    return _wrapped(result, {id(t.held): t for t in inside}) if to_device else result


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among an operator's arguments, which may be in lists."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _held(value: Any) -> Any:
    """An argument as the CPU is given it."""
    if isinstance(value, EmulatedTensor):
        return value.held
    return [_held(v) for v in value] if isinstance(value, list | tuple) else value


def _wrapped(result: Any, known: Mapping[int, EmulatedTensor]) -> Any:
    """A result as on the device. What was changed in place is what it was."""
    if isinstance(result, Tensor):
        return known.get(id(result)) if id(result) in known else EmulatedTensor(result)
    return type(result)(_wrapped(r, known) for r in result) if isinstance(result, list | tuple) else result


def _count_copy(func: Any, args: Any, to_device: bool) -> None:
    source, into = (args[1], isinstance(args[0], EmulatedTensor)) if func is torch.ops.aten.copy_.default else (args[0], to_device)
    if isinstance(source, EmulatedTensor) != into:
        _traffic.add("to_device" if into else "to_host")


def _check_together(func: Any, args: Any, tensors: list[Tensor], num_inside: int) -> None:
    """As on a GPU: everything is on the device, but for scalars of elementwise operators, and indices."""
    if len(tensors) == num_inside:
        return
    indices = [t for t in args[1] if t is not None] if func in _INDEXED else []
    for tensor in tensors:
        if isinstance(tensor, EmulatedTensor):
            continue
        if any(tensor is index for index in indices) and isinstance(args[0], EmulatedTensor):
            _traffic.add("to_device")
        elif tensor.dim() or not (func in _INDEXED or torch.Tag.pointwise in func.tags):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and {tensor.device}: {func}")


def _count_waits(func: Any, args: Any) -> None:
    if func.overloadpacket.__name__ in _WAITS:
        _traffic.add("waits")
    if func in _INDEXED and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1] if isinstance(t, EmulatedTensor)):
        _traffic.add("waits")


class _Operators(TorchDispatchMode):
    """Lets factories and copies make tensors on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """The same for what makes tensors of Python's numbers, which is no operator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func in _FROM_HOST and device is not None and torch.device(device).type == NAME:
            return func(*args, **{**kwargs, "device": "cpu"}).to(device)
        return func(*args, **kwargs)


class _LateCopy:
    """Copies of streamed layers, as :class:`editing.memory.streaming._CudaCopy` makes them: each happens as late as it may."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._size = size
        self._pinned: Tensor | None = None
        self._queued: tuple[Tensor, Tensor] | None = None

    def host_memory(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def pinned(self) -> Tensor:
        self.wait()
        if self._pinned is None:
            self._pinned = self.host_memory(self._size)
        return self._pinned

    def copy(self, source: Tensor, target: Tensor) -> None:
        self._queued = source, target

    def wait(self) -> None:
        if self._queued is not None:
            (source, target), self._queued = self._queued, None
            target.copy_(source)

    def release(self) -> None: ...


@cache
def register() -> None:
    """Make the device's name known to torch: once in a process, for good, and before the first backward pass of any test in it.

    So these tests have a process of their own (:mod:`tests.support.emulated_jobs`).
    """
    _setup_privateuseone_for_python_backend(NAME)
    _LIBRARY.impl("silu_backward", lambda *_: None, "PrivateUse1")


@contextmanager
def accelerator() -> Iterator[Traffic]:
    """Within this context, and this thread, there is the device ``emu``; yields what goes between host and device, counted from 0."""
    register()
    _traffic.clear()
    choose = pretrained.choose_device

    def choose_device(name: str = "auto") -> torch.device:
        return torch.device(NAME, 0) if name == NAME else choose(name)

    patched = mock.patch.object(pretrained, "choose_device", choose_device), mock.patch.object(streaming, "_CudaCopy", _LateCopy)
    with patched[0], patched[1], _Functions(), _Operators():
        yield _traffic


def _place() -> str:
    """The line of the project that is running: of the method before that of a test."""
    frame, found = sys._getframe(2), "elsewhere"
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_ROOT) and "site-packages" not in file and file != __file__:
            place = f"{file[len(_ROOT) + 1 :]}:{frame.f_lineno} {frame.f_code.co_name}"
            if not place.startswith("tests"):
                return place
            found = place if found == "elsewhere" else found
        frame = frame.f_back  # type: ignore[assignment]
    return found
