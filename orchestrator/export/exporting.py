"""One export: from a run's weights to a folder with its certificate, which is there whole or not at all."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from editing.atomic import whole_folder
from editing.errors import InputError
from editing.files import pretrained
from editing.files.adapter import read_adapter, total_shifts, write_adapter
from editing.files.delta import write_delta
from editing.files.gguf_files import GgufNames, import_gguf, write_edited_gguf, write_gguf_adapter
from editing.files.saving import save_companions, save_edited, save_tensors
from editing.files.weights import keys_in_files
from editing.low_rank import LowRank
from editing.sharding.shards import LinearShard
from editing.version import __version__
from orchestrator.export.certificate import check_key, digest_of, write_certificate
from orchestrator.export.reference import Reference
from orchestrator.export.sample import Contained, edits_between
from orchestrator.export.source import RunSource, Snapshot
from orchestrator.progress import Progress

logger = logging.getLogger("ultraedit")

Form = Literal["peft", "checkpoint", "delta", "gguf", "gguf-lora"]
FORMS: tuple[Form, ...] = get_args(Form)
ADAPTERS: tuple[Form, ...] = ("peft", "gguf-lora")

GGUF_ADAPTER, GGUF_MODEL = "adapter.gguf", "model.gguf"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is exported, and how.

    Attributes:
        form: ``peft``, ``checkpoint``, ``delta``, ``gguf`` or ``gguf-lora``.
        output: Folder to make.
        rank: Largest rank of an adapter; ``None`` for the rank at which nothing but rounding is lost.
        from_turn: Turn at which the model is to which an adapter is added; 0 is the unedited one.
        to_turn: Turn to which it brings it; ``None`` for the last.
        whole: Of a checkpoint all weights, not the edited ones alone.
        base_gguf: GGUF file of the unedited model, for ``gguf``.
        measure: Edits on which the export is measured; 0 for none.
        seed: Seed of their choice.
        sign: Private key for the certificate.
    """

    form: Form
    output: Path
    rank: int | None = None
    from_turn: int = 0
    to_turn: int | None = None
    whole: bool = False
    base_gguf: Path | None = None
    measure: int = 100
    seed: int = 0
    sign: Path | None = None

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            InputError: Naming the option.
        """
        if self.output.exists():
            raise InputError(f"output: {self.output} is there already; give a folder that is not")
        if self.form not in ADAPTERS and (self.rank is not None or self.from_turn):
            name = "rank" if self.rank is not None else "from-turn"
            raise InputError(f"{name}: belongs to adapters, {' and '.join(ADAPTERS)}; a {self.form} has the whole weights after a turn")
        if self.whole and self.form != "checkpoint":
            raise InputError(f"whole: belongs to --as checkpoint, found --as {self.form}")
        if (self.form == "gguf") != (self.base_gguf is not None):
            raise InputError("base-gguf: --as gguf copies the unedited model's GGUF file and replaces the edited matrices: give both, or neither")
        if self.form.startswith("gguf"):
            import_gguf()
        if self.sign is not None:
            check_key(self.sign)


def export_run(source: RunSource, options: ExportOptions, progress: Progress, reference: Reference | None = None) -> dict[str, Any]:
    """Write an export.

    Args:
        source: The run.
        options: What is exported, and how.
        progress: Shows a person how far it is.
        reference: The run's model, if it is in memory already.

    Returns:
        The certificate.

    Raises:
        InputError: An option is not usable, or the disk is full. Nothing was written.
        ModelError: The base model is not the one that was edited, or cannot be had in this form.
    """
    options.check()
    last = source.last_turn if options.to_turn is None else options.to_turn
    source.check_turns(options.from_turn, last)
    names = GgufNames(source.config, source.base) if options.form.startswith("gguf") else None
    with progress.spinner("reading the weights"):
        before, after = source.snapshot(options.from_turn, progress), source.snapshot(last, progress)
    try:
        with whole_folder(options.output) as partial:
            with progress.spinner("writing"):
                modules, merged = _write(partial, source, options, before, after, names)
            contained = edits_between(source.ledger, options.from_turn, last, size=options.measure, seed=options.seed)
            metrics = _measure(source, options, contained, before, after, merged, reference)
            content = _content(source, options, before, after, merged, modules, contained, metrics)
            certificate = write_certificate(partial, content, key=options.sign)
    except OSError as error:
        raise InputError(f"{options.output}: the export could not be written ({error.strerror or error}); nothing is left of it") from None
    return certificate


def export_unedited(source: RunSource, output: Path, *, whole: bool) -> None:
    """Write the unedited weights of the edited modules as a checkpoint, with which an engine goes back to before the first edit.

    Raises:
        InputError: The disk is full. Nothing was written.
    """
    before = source.snapshot(0, Progress.silent())
    try:
        with whole_folder(output) as partial:
            _write(partial, source, ExportOptions(form="checkpoint", output=output, whole=whole), before, before, None)
    except OSError as error:
        raise InputError(f"{output}: the unedited weights could not be written ({error.strerror or error}); nothing is left of them") from None


def _write(
    folder: Path, source: RunSource, options: ExportOptions, before: Snapshot, after: Snapshot, names: GgufNames | None
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """Write an export's files; what is said of each module, and its weight as an engine will have it."""
    linears = source.linears
    if options.form in ADAPTERS:
        shifts = total_shifts(before.exact, after.exact, linears, num_turns=after.turn - before.turn, rank=options.rank)
        if names is not None:
            rank = write_gguf_adapter(folder / GGUF_ADAPTER, shifts, names)
            products = {name: shift.dense() for name, shift in shifts.items()}
        else:
            rank = write_adapter(folder, shifts, linears, base=source.base)
            products = {name: left @ right for name, (left, right) in read_adapter(folder).items()}
        merged = {name: before.held[name].float() + linears[name].turned(product) for name, product in products.items()}
        return {name: {**_shape(linears[name]), **_lost(shift), "stored_rank": rank} for name, shift in shifts.items()}, merged
    if options.form == "gguf" and names is not None and options.base_gguf is not None:
        write_edited_gguf(folder / GGUF_MODEL, options.base_gguf, after.exact, before.held, names)
        return {name: _shape(linear) for name, linear in linears.items()}, {name: weight.float() for name, weight in after.exact.items()}
    if options.form == "delta":
        dtype = str(source.dtype).removeprefix("torch.")
        write_delta(folder, after.held, base=source.base, fingerprint=source.state.base_fingerprint, dtype=dtype)
    else:
        skeleton = pretrained.make_skeleton(source.folder, source.config, source.dtype)
        keys = keys_in_files(source.folder, skeleton, [f"{name}.weight" for name in after.held])
        weights = {keys[f"{name}.weight"]: weight for name, weight in after.held.items()}
        if options.whole:
            save_edited(source.folder, weights, folder)
        else:
            save_tensors(weights, folder / "model.safetensors")
            save_companions(source.folder, folder)
    return {name: {**_shape(linear), **_rounded(before, after, name)} for name, linear in linears.items()}, dict(after.held)


def _shape(linear: LinearShard) -> dict[str, Any]:
    return {"d_in": linear.shape[0], "d_out": linear.shape[1]}


def _lost(shift: LowRank) -> dict[str, Any]:
    return {"rank": shift.rank, "kept": shift.kept, "error": shift.error, "norm": shift.norm}


def _rounded(before: Snapshot, after: Snapshot, name: str) -> dict[str, float]:
    """What rounding to the model's precision takes from a module's shift, as a share of its norm."""
    exact, held = after.exact[name].double(), after.held[name].double()
    norm = float((exact - before.held[name].double()).norm())
    return {"rounding": float((held - exact).norm()) / norm if norm else 0.0}


def _measure(
    source: RunSource,
    options: ExportOptions,
    edits: Contained,
    before: Snapshot,
    after: Snapshot,
    merged: dict[str, Tensor],
    reference: Reference | None,
) -> dict[str, Any]:
    """Metrics of the model before, of the full edit, and of what was exported; nothing where the model does not fit into the memory."""
    if not options.measure or not edits.sample:
        return {}
    if reference is None and not source.fits_in_memory:
        logger.warning("measure: the run held its model in parts, so the export is not measured")
        return {}
    states = {"before": before.held, "full_edit": after.held, "exported": merged}
    return {"edits": len(edits.sample), **(reference or Reference(source)).compare(edits.sample, states)}


def _content(
    source: RunSource,
    options: ExportOptions,
    before: Snapshot,
    after: Snapshot,
    merged: Mapping[str, Tensor],
    modules: Mapping[str, Any],
    edits: Contained,
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    dtype = str(source.dtype).removeprefix("torch.")
    return {
        "form": options.form,
        "options": {"rank": options.rank, "whole": options.whole},
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "run": str(source.path.resolve()),
        "base": {
            "name": source.base,
            "turn": before.turn,
            "fingerprint": source.state.base_fingerprint,
            "dtype": dtype,
            "digests": {name: digest_of(weight) for name, weight in before.held.items()},
        },
        "full_edit": {"turn": after.turn, "digests": {name: digest_of(weight) for name, weight in after.held.items()}},
        "merged": {"dtype": str(next(iter(merged.values())).dtype).removeprefix("torch."), "digests": {n: digest_of(w) for n, w in merged.items()}},
        "edits": {"from_turn": before.turn, "to_turn": after.turn, "count": edits.count, "superseded": edits.superseded, "sha256": edits.sha256},
        "modules": dict(modules),
        "metrics": dict(metrics),
        "versions": {**source.run["versions"], "exported_by": __version__},
    }
