"""What this project knows about DeepSpeed's automatic tensor parallelism (0.19), and the only place that imports it.

``init_inference`` replaces each linear of a model by a shard of it, with an all-reduce or a slice where that is needed. For
gradients of activations it needs the repairs below: without them forward passes are exact and gradients are wrong, without
an error. Everything else of a model (embeddings, norms) stays whole on every shard.
"""

import copy
import importlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from editing.errors import ModelError
from editing.ranges import consecutive
from editing.sharding.shards import LinearShard


@contextmanager
def _without_mlflow() -> Iterator[None]:
    """DeepSpeed's autotuner, which is not used, imports MLflow where it is installed: two seconds in every shard."""
    if "mlflow" in sys.modules:
        yield
        return
    sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["mlflow"]


with _without_mlflow():
    import deepspeed


def shard(model: Any, group: dist.ProcessGroup, *, dtype: torch.dtype, device: torch.device) -> Any:
    """Cut a model on the meta device. Collective.

    Args:
        model: A Hugging Face model. Its parameters lie on the meta device, its buffers do not.
        group: The shards' processes.
        dtype: Precision of the weights.
        device: Where this shard goes.

    Returns:
        The model with shards in the places of its linears, each with its :class:`~editing.sharding.shards.LinearShard` as attribute ``shard``, and
        memory for its weights, which are not filled in.

    Raises:
        ModelError: A layer was cut in a way that this module does not know.
    """
    from deepspeed.inference.engine import InferenceEngine

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    without_shared_memory_sums()
    deepspeed.init_distributed(dist.get_backend(group), auto_mpi_discovery=False, verbose=False)
    InferenceEngine.inference_mp_group = group  # or it makes its own, with another timeout, and keeps it
    with redirect_stdout(io.StringIO()):  # it prints what it replaces
        engine = deepspeed.init_inference(
            model,
            dtype=dtype,
            replace_with_kernel_inject=False,
            # a grain of 1: shards of small layers are as even as they can be; by default one may get nothing
            tensor_parallel={"tp_size": dist.get_world_size(group), "tp_grain_size": 1},
        )
    sharded = engine.module
    for name, buffer in buffers.items():  # which it has emptied, and rounded to the weights' precision
        parent, _, leaf = name.rpartition(".")
        sharded.get_submodule(parent)._buffers[leaf] = buffer.to(device)
    repair(sharded)
    for name, module in sharded.named_modules():
        shard = _shard_of(name, module)
        if shard is not None:
            module.shard = shard
    return sharded


def without_shared_memory_sums() -> None:
    """Keep DeepSpeed from compiling its own sum over processes of one machine: it wants a C++ compiler on every machine and
    gains nothing here, where sums are a small share of a pass (docs/LOG.md). Sums then go through the process group."""
    backend = importlib.import_module("deepspeed.comm.torch")  # as an attribute of deepspeed.comm, torch is torch itself
    backend.build_shm_op = lambda: None  # type: ignore[attr-defined]


def repair(model: Any) -> None:
    """Make gradients of activations right; the functions below say what was wrong."""
    from deepspeed.module_inject import layers

    layers.ColumnParallel = CopyToShards
    layers.LmHeadLinearAllreduce.forward = head_forward
    layers.add_bias = add_bias
    for module in model.modules():
        _set_head_count(module)


class CopyToShards(torch.autograd.Function):
    """What enters a sharded linear whole: each shard sees all of it, so its gradient is the sum of theirs.

    DeepSpeed's own sums a contiguous *copy* of the gradient and returns the gradient unsummed where that is not contiguous.
    """

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, values: Tensor) -> Tensor:
        ctx.group = group
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient, group=ctx.group)
        return None, gradient


def head_forward(head: Any, hidden: Tensor) -> Tensor:
    """Forward of a sharded head for ``(..., d)``. DeepSpeed's own takes ``(B, T, d)`` alone and does not sum its gradient."""
    from deepspeed.module_inject import layers

    offset = sum(head._partition_sizes[: head.tp_index])
    copy_to_shards: Any = CopyToShards.apply
    part = copy_to_shards(head.mp_group, hidden)[..., offset : offset + head._partition_sizes[head.tp_index]]
    logits = layers.RowParallel.apply(head.mp_group, torch.matmul(part, head.weight.t()), True)
    return add_bias(logits, head.bias)


def add_bias(values: Tensor, bias: Tensor | None) -> Tensor:
    """DeepSpeed's own adds in place, which autograd refuses after a sum."""
    return values if bias is None else values + bias


def _set_head_count(module: Any) -> None:
    """Two families do not take their number of attention heads from where DeepSpeed corrects it."""
    kind = type(module).__name__
    if kind == "Phi3Attention":
        heads = module.o_proj.weight.shape[1] // module.head_dim
        module.config = copy.copy(module.config)
        module.config.num_attention_heads = heads
        module.num_key_value_heads = heads // module.num_key_value_groups
    elif kind == "GPTJAttention":
        module.num_attention_heads = module.out_proj.weight.shape[1] // module.head_dim


def _shard_of(name: str, module: nn.Module) -> LinearShard | None:
    """What of its linear a shard holds; ``None`` for any other module. Shards need not be even."""
    from deepspeed.module_inject import layers

    if not isinstance(module, layers.TensorParallel_Layer):
        return None
    d_out, d_in = module._orig_weight_shape
    if type(module) in (layers.LinearAllreduce, layers.LmHeadLinearAllreduce):
        held = tuple((r,) for r in consecutive(module._partition_sizes))
        return LinearShard((d_in, d_out), "keys", held, module.tp_index)
    if isinstance(module, layers.SubParamColumnParallel) and module._subparam_sizes is not None:
        return LinearShard((d_in, d_out), "values", _fused(module), module.tp_index)
    if type(module) is layers.LinearLayer:
        held = tuple((r,) for r in consecutive(module._partition_sizes))
        return LinearShard((d_in, d_out), "values", held, module.tp_index)
    raise ModelError(f"{name}: DeepSpeed shards it as {type(module).__name__}, which is not supported; run this model on one shard")


def _fused(module: Any) -> tuple[tuple[range, ...], ...]:
    """Fused projections are cut one by one: a shard holds a piece of each."""
    starts = [r.start for r in consecutive(module._subparam_sizes)]
    pieces = [consecutive(widths, start) for start, widths in zip(starts, module._subparam_shard_widths, strict=True)]
    return tuple(zip(*pieces, strict=True))
