"""``ultraedit plan``: what editing a model would take in memory, disk, traffic and time, from its configuration alone. No weight is read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from editing import InputError, ModelError
from editing.config import RAW, MethodOptions
from editing.files import pretrained
from editing.files.checkpoint_files import weight_files
from editing.memory.budget import Footprint, MemoryPlan, Work, make_plan, memory_breakdown, show_size
from editing.memory.calibration import ROWS_AN_EDIT, Forecast, Rates, outlook
from editing.model.decoder import Decoder
from editing.model.framing import describe_framings, resolve_framings
from editing.model.modules import describe_editable, resolve
from editing.presets import find_preset
from editing.presets.resolve import resolve_settings
from workers.engines.sharded import check_can_be_cut, has_uncuttable
from workers.engines.streamed import process_bytes


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What is planned.

    Attributes:
        model: Folder, which may hold nothing but a config.json, or Hub id.
        modules: Patterns of the edited modules; by default the preset's.
        preset: Name of a preset; by default the model's own.
        dtype: As for a run.
        cuda: Whether the device is a GPU.
        device_memory: Bytes that a device may use; ``None`` for as many as it takes.
        shards: Devices that one copy of the model is cut over.
        replicas: Copies of the model.
        edits_per_turn: Edits that share one shift per module.
        batch_tokens: Padded tokens in one physical batch.
        flops: Flop/s of a device; ``None`` to measure this machine's CPU.
        read: Bytes per second that the disk gives; ``None`` to measure.
    """

    model: str
    modules: Sequence[str] | None = None
    preset: str | None = None
    dtype: pretrained.DTypeName = "auto"
    cuda: bool = False
    device_memory: int | None = None
    shards: int = 1
    replicas: int = 1
    edits_per_turn: int = 100
    batch_tokens: int = 2048
    flops: float | None = None
    read: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan: its lines, each a topic and a text, and where the layers would be on a device; ``None`` if the model does not fit."""

    lines: list[tuple[str, str]]
    memory: MemoryPlan | None

    @property
    def fits(self) -> bool:
        """Whether the model fits."""
        return self.memory is not None


def plan(options: PlanOptions) -> Plan:
    """Plan a run.

    Raises:
        ModelError: The model's configuration cannot be read.
        InputError: A module is unknown, or there is neither a preset nor ``modules``.
    """
    config = pretrained.read_config(options.model)
    skeleton = pretrained.make_skeleton(options.model, config, pretrained.resolve_dtype(config, options.dtype))
    decoder = Decoder(skeleton)
    check_can_be_cut(options.model, skeleton, options.shards)
    rate = 1.0 if options.modules else None  # any: a plan does not depend on it
    chosen, _, preset = resolve_settings(decoder, options.model, modules=options.modules, learning_rate=rate, preset=options.preset)
    method = MethodOptions(**{name: value for name, value in preset.items() if name in MethodOptions.names()})
    method = replace(method, framings=resolve_framings(method.framings, chats=pretrained.has_chat_template(options.model)))
    modules = resolve(decoder, (*chosen, *method.subject_modules))
    footprint = Footprint.of(decoder, modules, skeleton.dtype)
    work = Work(
        batch_tokens=options.batch_tokens,
        edits_per_turn=options.edits_per_turn,
        process=process_bytes(torch.device("cuda" if options.cuda else "cpu")),
        method=method,
    )
    lines = [*_about(skeleton, decoder, options), ("edits", ", ".join(modules))]
    if method.framings != (RAW,):
        lines.append(("text", describe_framings(method.framings)))
    memory, found = _memory(decoder, footprint, work, options)
    lines += memory
    lines += _traffic(decoder, modules, footprint, options)
    lines += _time(footprint, found, skeleton.dtype, options, forms=len(method.framings)) if found else []
    return Plan(lines, found)


def _about(skeleton: PreTrainedModel, decoder: Decoder, options: PlanOptions) -> list[tuple[str, str]]:
    count = sum(p.numel() for p in skeleton.parameters())
    precision = str(skeleton.dtype).removeprefix("torch.")
    found = find_preset(decoder.config, type(skeleton).__name__, options.preset)
    files = _files(options.model)
    stored = show_size(sum(file.stat().st_size for file in files)) if files else f"{show_size(count * skeleton.dtype.itemsize)}, to be downloaded"
    return [
        ("model", f"{type(skeleton).__name__}, {count / 1e9:.2f} billion parameters, {decoder.num_layers} layers, in {precision}; weights {stored}"),
        ("preset", f"{found.name}, learning rate {found.learning_rate:g}" if found else "none: modules by their depth, unless --modules names them"),
        ("editable", describe_editable(decoder)),
    ]


def _memory(decoder: Decoder, footprint: Footprint, work: Work, options: PlanOptions) -> tuple[list[tuple[str, str]], MemoryPlan | None]:
    """Whether a device holds it: whole, a shard of it, or with layers streamed."""
    whole = {name: size for name, size in memory_breakdown(footprint, work, 0, True).items() if size}
    if not decoder.is_tied:
        whole["embedding table"] = decoder.table.weight.numel() * footprint.itemsize
    need = _of_a_shard(whole, decoder, footprint, options.shards)
    lines = [("memory", f"{show_size(sum(need.values()))} a device with all layers in memory: {_listed(need)}")]
    budget = options.device_memory
    if budget is None or sum(need.values()) <= budget:
        return lines, MemoryPlan(budget or sum(need.values()), need, 0, footprint.start, len(footprint.layers), True, 0, 0)
    reason = f"{show_size(budget)} a device"
    if options.shards == 1:
        try:
            return lines, make_plan(footprint, work, budget)
        except InputError as error:
            reason = str(error).removeprefix("device_memory: ")
    return [*lines, ("does not fit", reason), ("would fit", _enough(whole, decoder, footprint, budget))], None


def _of_a_shard(whole: dict[str, int], decoder: Decoder, footprint: Footprint, shards: int) -> dict[str, int]:
    """DeepSpeed cuts the linears of the layers and the head; each shard has the whole embedding table, the norms and its own work."""
    if shards == 1:
        return whole
    cut = {name: size // shards if "layers" in name or "edited" in name or "masters" in name else size for name, size in whole.items()}
    head = int(decoder.head.weight.numel()) * footprint.itemsize  # type: ignore[operator]
    cut["head and norms"] = footprint.rest - head + head // shards
    cut["embedding table"] = decoder.table.weight.numel() * footprint.itemsize  # a tied one too
    return cut


def _enough(whole: dict[str, int], decoder: Decoder, footprint: Footprint, budget: int) -> str:
    if has_uncuttable(decoder.model):
        return "no number of shards: its layers are Conv1D, which cannot be cut"
    heads = decoder.config.num_attention_heads
    for shards in range(2, heads + 1):
        if heads % shards == 0 and sum(_of_a_shard(whole, decoder, footprint, shards).values()) <= budget:
            return f"--shards {shards} on devices of this size"
    return f"no number of shards up to its {heads} attention heads on devices of this size"


def _traffic(decoder: Decoder, modules: dict[str, torch.nn.Linear], footprint: Footprint, options: PlanOptions) -> list[tuple[str, str]]:
    """What a run writes, and what leaves a shard in a turn."""
    rows = options.edits_per_turn * ROWS_AN_EDIT
    result = sum(p.numel() for p in decoder.model.parameters()) * footprint.itemsize
    state = sum(footprint.edited) + footprint.masters
    delta = show_size(sum(footprint.edited))
    lines = [("disk", f"{show_size(result)} for the edited model (--save delta: {delta}), {show_size(3 * state)} for checkpoints")]
    widths = [sum(module.weight.shape) for module in modules.values()]
    if options.shards > 1:
        sent = sum(16 * width for width in widths) + len(widths) * 8 * rows * (rows + 1)
        lines.append(("a shard sends", f"{show_size(sent)} a turn: moments, {rows} x {rows} Gram matrices, norms"))
    if options.replicas > 1:
        got = 4 * rows * sum(widths) * (options.replicas - 1) / options.replicas
        lines.append(("a replica gets", f"{show_size(got)} a turn: the others' keys and value gradients"))
    return lines


def _time(footprint: Footprint, found: MemoryPlan, dtype: torch.dtype, options: PlanOptions, *, forms: int) -> list[tuple[str, str]]:
    if options.cuda and options.flops is None:
        return [("time", "unknown: this machine's CPU says nothing about a GPU; give --flops, and --read where layers are streamed")]
    files = _files(options.model)
    rates = None
    if options.flops is None or (options.read is None and files):
        rates = Rates.measure(footprint, dtype, torch.device("cpu"), files[0] if files else None)
    used = Rates(options.flops or (rates.flops if rates else 0.0), options.read or (rates.read if rates else float("inf")))
    forecast = Forecast.of(footprint, found, used, options.edits_per_turn, forms=forms)
    reading = f", {used.read / 1e9:.1f} GB/s read" if found.streamed and used.read < float("inf") else ""
    speed = f"{used.flops / 1e12:.2f} Tflop/s{reading}; {'as given' if options.flops else 'measured here'}"
    lines = [("at", speed)]
    if found.streamed:
        return lines + outlook(footprint, found, forecast, where="disk", pinned=False, lookahead=forecast.lookahead)
    seconds = forecast.turn_seconds / options.shards / options.replicas
    apart = ", without the communication between workers" if options.shards * options.replicas > 1 else ""
    return [*lines, ("time", f"about {seconds:.2f} s a turn, {options.edits_per_turn / seconds:.0f} edits/s{apart}")]


def _files(model: str) -> list[Path]:
    try:
        return weight_files(pretrained.local_folder(model)) if Path(model).exists() else []
    except ModelError:  # a folder with a configuration alone
        return []


def _listed(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {show_size(size)}" for name, size in parts.items() if size)
