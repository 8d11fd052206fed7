"""Decoder layers that are read from disk when a pass needs them, so that a model need not fit in memory.

    disk --reader thread--> slot A | slot B --> layers i, i + 1, ...      layers m .. L-1 and the head stay

While one layer computes, the next one is read into the other slot. A pass that begins with a layer that is still in a slot uses
it again, as the backward pass does with the last layer of the forward pass. On a GPU a slot has pinned CPU memory beside its memory
on the device, and is copied there on a CUDA stream of its own.
"""

from collections.abc import Collection, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from editing.files.reader import WeightReader
from editing.memory.heap import trim
from editing.model.hidden_store import HiddenStore

_ALIGNMENT = 64


class LayerStream:
    """Residency of a model whose lower layers are streamed.

    Args:
        layers: The decoder's layers. Weights of the streamed ones are on the meta device.
        path: Name of the list of layers in the model.
        reader: Reads their weights.
        streamed: Number of layers, from the lowest, that are streamed.
        fixed: Names of weights of streamed layers that stay in memory: the edited ones.
        dtype: Precision of the weights in memory.
        device: Where the weights go.
        hidden_limit: Bytes of hidden states that may be in memory; ``None`` for no limit.
        pinned: On a GPU, keep what was read in pinned CPU memory, so that each layer is read from disk once.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        path: str,
        reader: WeightReader,
        *,
        streamed: int,
        fixed: Collection[str],
        dtype: torch.dtype,
        device: torch.device,
        hidden_limit: int | None = None,
        pinned: bool = False,
    ) -> None:
        self.device = device
        self.num_streamed = streamed
        self._count, self._hidden_limit = len(layers), hidden_limit
        self._weights = [_weights_of(layers[i], f"{path}.{i}", fixed) for i in range(streamed)]
        size = max((_layout(weights, dtype)[1] for weights in self._weights), default=0)
        self._slots = [_Slot(size, dtype, device, reader) for _ in range(min(2, streamed))]
        self._kept: dict[int, Tensor] | None = {} if pinned and device.type != "cpu" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="layer-reader")

    def segments(self, first: int, stop: int, *, down: bool = False) -> Generator[range, None, None]:
        border = min(max(first, self.num_streamed), stop)
        singles = [range(i, i + 1) for i in range(first, border)]
        order = singles + ([range(border, stop)] if border < stop else [])
        if down:
            order.reverse()
        streamed = [segment.start for segment in order if segment.start < self.num_streamed]
        for segment in order:
            if segment.start >= self.num_streamed:
                self._request(next(iter(streamed), None))
                yield segment
                continue
            slot = self._slot_of(segment.start)
            streamed.pop(0)
            slot.wait()
            self._request(next(iter(streamed), None), busy=slot)
            slot.attach(self._weights[segment.start])
            try:
                yield segment
            finally:
                slot.detach(self._weights[segment.start])
        trim()

    def holds(self, first: int, stop: int) -> bool:
        return first >= self.num_streamed

    def hidden_store(self) -> HiddenStore:
        return HiddenStore(limit=self._hidden_limit, move=self.device.type != "cpu")

    def close(self) -> None:
        """End the reader thread."""
        self._thread.shutdown()

    def _request(self, layer: int | None, busy: "_Slot | None" = None) -> None:
        """Begin to read the next layer, if there is one, into a slot that is not busy."""
        if layer is None or any(slot.layer == layer for slot in self._slots):
            return
        free = next((slot for slot in self._slots if slot is not busy), None)
        if free is not None:
            free.begin(layer, self._weights[layer], self._kept, self._thread)

    def _slot_of(self, layer: int) -> "_Slot":
        self._request(layer)
        return next(slot for slot in self._slots if slot.layer == layer)


_Weight = tuple[nn.Module, str, str, nn.Parameter]
"""A module, its parameter's own name and full name, and the placeholder on the meta device."""


def _weights_of(layer: nn.Module, path: str, fixed: Collection[str]) -> list[_Weight]:
    found: list[_Weight] = []
    for name, module in layer.named_modules(prefix=path):
        for leaf, parameter in module._parameters.items():
            if parameter is not None and f"{name}.{leaf}" not in fixed:
                found.append((module, leaf, f"{name}.{leaf}", parameter))
    return found


def _layout(weights: list[_Weight], dtype: torch.dtype) -> tuple[list[int], int]:
    """Offset of each weight in a slot, and the size of all, in bytes."""
    offsets, end = [], 0
    for *_, parameter in weights:
        offsets.append(end)
        end += -(-parameter.numel() * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


class _Slot:
    """Memory for one layer's weights at a time."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device, reader: WeightReader) -> None:
        self.layer: int | None = None
        self._dtype, self._reader = dtype, reader
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        self._ready: Future[None] | None = None
        self._cuda = _CudaCopy(size, device) if device.type != "cpu" else None

    def begin(self, layer: int, weights: list[_Weight], kept: dict[int, Tensor] | None, thread: ThreadPoolExecutor) -> None:
        """Begin to read a layer."""
        if self._ready is not None:
            self._ready.exception()  # of a read that nobody waited for, since its pass ended early
        self.layer = layer
        self._ready = thread.submit(self._fill, layer, weights, kept)

    def wait(self) -> None:
        """Wait until the layer is in memory. Raises what reading it raised."""
        assert self._ready is not None
        try:
            self._ready.result()
        except BaseException:
            self.layer = None
            raise
        if self._cuda:
            self._cuda.wait()

    def attach(self, weights: list[_Weight]) -> None:
        """Put the weights in their modules."""
        for (module, leaf, *_), view in zip(weights, self._views(weights, self._memory), strict=True):
            module._parameters[leaf] = nn.Parameter(view, requires_grad=False)

    def detach(self, weights: list[_Weight]) -> None:
        """Take the weights out of their modules, so that nothing computes with the next content of the slot."""
        for module, leaf, _, placeholder in weights:
            module._parameters[leaf] = placeholder
        if self._cuda:
            self._cuda.release()

    def _fill(self, layer: int, weights: list[_Weight], kept: dict[int, Tensor] | None) -> None:
        if self._cuda is None:
            self._read(weights, self._memory)
        elif kept is None:
            self._read(weights, self._cuda.pinned())
            self._cuda.copy(self._cuda.pinned(), self._memory)
        else:
            if layer not in kept:
                content = self._cuda.host_memory(_layout(weights, self._dtype)[1])
                self._read(weights, content)
                kept[layer] = content
            self._cuda.copy(kept[layer], self._memory[: len(kept[layer])])

    def _read(self, weights: list[_Weight], memory: Tensor) -> None:
        for (_, _, name, _), view in zip(weights, self._views(weights, memory), strict=True):
            self._reader.read(name, view)

    def _views(self, weights: list[_Weight], memory: Tensor) -> list[Tensor]:
        offsets, _ = _layout(weights, self._dtype)
        return [memory[a : a + p.numel() * self._dtype.itemsize].view(self._dtype).view(p.shape) for a, (*_, p) in zip(offsets, weights, strict=True)]


class _CudaCopy:
    """Copies from pinned memory to a slot on a GPU, on a stream of its own, while the GPU computes."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._size, self._device = size, device
        self._stream: Any = torch.cuda.Stream(device)
        self._filled: Any = None
        self._free: Any = None
        self._pinned: Tensor | None = None

    def host_memory(self, size: int) -> Tensor:
        """Pinned memory, from which a copy runs beside the host."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def pinned(self) -> Tensor:
        """The slot's own pinned memory, once the last copy from it is done."""
        if self._pinned is None:
            self._pinned = self.host_memory(self._size)
        if self._filled is not None:
            self._filled.synchronize()
        return self._pinned

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Queue the copy behind what still computes with the slot's last content."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            if self._free is not None:
                self._stream.wait_event(self._free)
            target.copy_(source, non_blocking=True)
            self._filled = torch.cuda.Event()
            self._filled.record(self._stream)

    def wait(self) -> None:
        """Let what is queued from now on wait for the copy."""
        torch.cuda.current_stream(self._device).wait_event(self._filled)

    def release(self) -> None:
        """Mark what is queued so far as the last to use the content."""
        self._free = torch.cuda.Event()
        self._free.record(torch.cuda.current_stream(self._device))
