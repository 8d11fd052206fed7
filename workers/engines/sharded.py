"""One shard of a model: built without weights, cut by DeepSpeed, then filled from the files slice by slice.

No process ever holds the whole model: its peak is its shard and one more layer's slice.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from editing import Editor
from editing.errors import ModelError
from editing.files import pretrained
from editing.files.saving import save_edited, saved_size
from editing.files.weights import WeightFiles
from editing.sharding.shards import LinearShard, is_linear, shard_of
from workers.engines.engine import InMemoryEngine
from workers.process_groups import GroupCollectives, Groups, Placement
from workers.protocol import WorkerSpec


class ShardedEngine(InMemoryEngine):
    """This process's shard of a model. Every method is called on all shards, in the same order."""

    def __init__(self, spec: WorkerSpec, placement: Placement, groups: Groups, device: torch.device) -> None:
        self._spec, self._placement, self._groups, self._device = spec, placement, groups, device
        self._opened = ExitStack()

    def load(self) -> Editor:
        spec, placement = self._spec, self._placement
        folder = pretrained.local_folder(spec.model)
        model, tokenizer, self._files, self._dtype = load_sharded(folder, self._groups.shards, device=self._device, dtype=spec.dtype)
        self._opened.callback(self._files.close)
        self._collectives = GroupCollectives(placement, self._groups, self._device)
        self._editor = Editor.of_loaded(model, tokenizer, spec.model, collectives=self._collectives, **spec.editing)
        return self._editor

    def num_parameters(self) -> int:
        return self._files.num_parameters

    def fingerprint(self) -> str:
        return pretrained.fingerprint(self._files.whole(), self._dtype)

    def saved_size(self) -> int:
        return saved_size(self._files.folder)

    def save(self, folder: Path) -> None:
        editor = self._editor
        edited = {self._files.key(f"{name}.weight"): weight.cpu() for name, weight in editor.weights.whole()}
        self._collectives.run_on_first(lambda: save_edited(self._files.folder, edited, folder))

    def close(self) -> None:
        self._opened.close()


def load_sharded(
    folder: Path, group: dist.ProcessGroup, *, device: torch.device, dtype: pretrained.DTypeName = "auto"
) -> tuple[PreTrainedModel, Any, WeightFiles, torch.dtype]:
    """Load this process's shard of a causal language model, frozen and in evaluation mode. Collective.

    Args:
        folder: Folder of the model.
        group: The shards' processes; this one's rank in it is its shard.
        device: Where the shard goes.
        dtype: As for :func:`editing.files.pretrained.load`.

    Returns:
        The model, whose linears carry their :class:`~editing.sharding.shards.LinearShard`; its tokenizer; its files; its precision.

    Raises:
        ModelError: One line saying what is missing or unsupported.
    """
    from workers import autotp

    config = pretrained.load_config(folder)
    precision = pretrained.resolve_dtype(config, dtype)
    skeleton = pretrained.make_skeleton(folder, config, precision)
    with ExitStack() as opened:
        files = opened.enter_context(WeightFiles(folder, skeleton))
        model = pretrained.attempt(folder, "shard", lambda: autotp.shard(skeleton, group, dtype=precision, device=device))
        fill(model, files)
        model.generation_config = pretrained.load_generation_config(folder, model)
        pretrained.check_causal(folder, model)
        tokenizer = pretrained.load_tokenizer(folder)
        opened.pop_all()  # all went well: the files stay open
    return model, tokenizer, files, precision


@torch.no_grad()
def fill(model: nn.Module, files: WeightFiles) -> None:
    """Read the weights of a shard."""
    for prefix, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = f"{prefix}.{leaf}"
            values = _cut(files.slice(name), getattr(module, "shard", None), leaf)
            if values.shape == parameter.shape:
                parameter.copy_(values)
            elif hasattr(module, "shard"):  # a head that shares a whole embedding's memory
                module._parameters[leaf] = nn.Parameter(values.to(parameter), requires_grad=False)
            else:
                raise ModelError(f"{name}: DeepSpeed has cut it to {tuple(parameter.shape)}, which is not supported; run this model on one shard")


def _cut(source: Any, shard: LinearShard | None, leaf: str) -> Tensor:
    if shard is None or (leaf == "bias" and shard.axis == "keys"):  # a bias is added after the sum over shards, by each of them
        whole: Tensor = source[:]
        return whole
    return shard.slice(source)


def check_num_shards(model: str, num_shards: int) -> None:
    """Refuse a model that cannot be cut, or a number of shards that leaves one without work, before anything is loaded. Uneven shards are allowed.

    Raises:
        ModelError: One line that says what would work.
    """
    folder = pretrained.local_folder(model)
    config = pretrained.load_config(folder)
    check_can_be_cut(folder, pretrained.make_skeleton(folder, config, pretrained.resolve_dtype(config, "auto")), num_shards)


def check_can_be_cut(name: object, skeleton: PreTrainedModel, num_shards: int) -> None:
    """The same of a model without its weights; ``name`` is what to call it."""
    heads = skeleton.config.get_text_config(decoder=True).num_attention_heads
    if num_shards > heads:
        raise ModelError(f"{name}: has {heads} attention heads, too few for {num_shards} shards; give 1 to {heads}")
    if num_shards > 1 and has_uncuttable(skeleton):
        raise ModelError(f"{name}: its layers are Conv1D, which cannot be cut into shards; give 1 shard, and --replicas for more devices")


def has_uncuttable(skeleton: nn.Module) -> bool:
    """Whether a model has linears that store their weights transposed. DeepSpeed lists GPT-2 among the models that it does not cut."""
    return any(is_linear(module) and shard_of(module).transposed for module in skeleton.modules())
