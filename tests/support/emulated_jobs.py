"""What is done once on the CPU and once on the emulated accelerator, with what came of it; in a process of its own.

Attention is computed by its plain formula, on both: the CPU's fused kernel, which no other device has, differs in the last bits.
"""

import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from editing import Editor
from editing.edited_weights import _digest
from editing.files import pretrained
from editing.memory import loading
from editing.memory.budget import Work
from editing.model.decoder import Decoder
from editing.model.generation import generate
from editing.monitoring.evaluation import evaluate
from editing.state import load_state, save_state
from editing.turn import in_turns, tokenize
from editing.turn_capture import TurnCapture
from tests.support.command_line import conclude_cheaply, run_command_line
from tests.support.emulated_accelerator import Traffic, accelerator, register
from tests.support.paths import ROOT
from tests.support.small_editor import LONG_FRAMING, MODEL, MODULES, editor, edits_with_probes, requests
from tests.support.tiny_runs import RECORDS, write_records

KINDS = ("to_device", "to_host", "waits")
TEXT = str(ROOT / "editing" / "probes" / "contexts.txt")
"""A reference text of a few sentences."""

SUBJECT = ("model.layers.0.mlp.down_proj",)
_SOLVED = {"subject_modules": SUBJECT, "subject_targets": "solved", "subject_steps": 2, "subject_bound": 3.0, "subject_weight": 20.0}
_SOLVED |= {"preserve": "exact", "preserve_text": TEXT, "subject_contexts": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "published": {},
    "published, d_in form": {"solve": "d_in"},
    "published, bfloat16": {"dtype": "bfloat16"},
    "passes with a margin": {"passes": 3, "margin": 1.0},
    "preserve exact": {"preserve": "exact", "preserve_text": "everyday"},
    "preserve outputs": {"preserve": "exact", "preserve_text": TEXT, "preserve_outputs": 0.5},
    "preserve sketch": {"preserve": "sketch", "preserve_rank": 48, "preserve_text": TEXT},
    "whiten": {"whiten": True},
    "subject, gradient": {"subject_modules": SUBJECT},
    "subject, solved": _SOLVED,
    "strength": {"strength": 0.001, "passes": 1, "preserve": "off", "preserve_text": "none", "small_turns": False},
    "framings": {"framings": ("raw", "question"), "answer_end": "stop"},
    "a beginning for all": {"framings": ("raw", LONG_FRAMING), "preserve": "exact", "preserve_text": TEXT, "preserve_neighbours": 4},
    "alike": {"preserve": "exact", "preserve_text": TEXT, "preserve_neighbours": 2, "preserve_alike": True},
    "everything": {**_SOLVED, "passes": 2, "margin": 0.5, "framings": ("raw", "question")},
}
"""Settings of an editor by name."""

STEPS = {"edits_per_turn": 4, "group_size": 2}


def prepare() -> None:
    """Get a new process ready: before its first backward pass."""
    register()
    conclude_cheaply()
    torch.set_num_threads(1)


class _On(ExitStack):
    """A device: within this context there is the emulated one, if that is it; what went between it and the host."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.enter_context(sdpa_kernel(SDPBackend.MATH))
        self.traffic = self.enter_context(accelerator()) if device != "cpu" else Traffic()


def edit(name: str, device: str, num_edits: int = 4, per_turn: int = 2, batch_tokens: int = 8192) -> tuple[Any, dict[str, int]]:
    """Turns with settings by name. The weights' digests with the reports without their times; and what the last turn took.

    That is copies and waits by kind, ``runs`` of layers over a batch, and ``captures``. Efficacy after the turn, which adds a copy to the
    host for each of its batches, is not measured.
    """
    settings = {**STEPS, "edits_per_turn": per_turn, "batch_tokens": batch_tokens, **OPTIONS[name]}
    with _On(device) as on:
        one = editor(device=device, **settings)
        edits = [tokenize(one.joiner, request, max_tokens=None) for request in requests(num_edits)]
        *earlier, last = in_turns(edits, per_turn, before=0)
        for prepared in one.prepare(earlier):
            one.apply_turn(prepared)
        one.preserved.of_text()
        one.preserved.of_outputs()
        calls = Counter[str]()
        for owner, method, kind in ((Decoder, "span", "runs"), (TurnCapture, "__call__", "captures")):
            on.enter_context(mock.patch.object(owner, method, _counted(getattr(owner, method), calls, kind)))
        on.traffic.clear()
        report = one.apply_turn(one.prepare([last])[0], measure=False)
        taken = {**{kind: on.traffic.counts[kind] for kind in KINDS}, **calls}
        assert one.decoder.device.type == device
        return (one.digests(), replace(report, seconds={})), taken


def _counted(method: Any, calls: Counter[str], kind: str) -> Any:
    def call(*arguments: Any, **named: Any) -> Any:
        calls[kind] += 1
        return method(*arguments, **named)

    return call


def live(folder: Path, device: str) -> dict[str, Any]:
    """What comes after edits: metrics, texts, a stored state, a resumed editor, a saved model, and the way back."""
    with _On(device):
        one = editor(device=device, **STEPS, whiten=True)
        before = one.digests()
        one.apply(requests()[:4])
        found: dict[str, Any] = {"metrics": [asdict(result) for result in evaluate(one, edits_with_probes(one)[:2])]}
        found["texts"] = generate(one.decoder, one.tokenizer, ["The capital of Kiribati is", "Perl"], max_new_tokens=3)
        save_state(one, folder / "state.safetensors")
        found["state"] = {name: _digest(tensor) for name, tensor in load_file(folder / "state.safetensors").items()}
        other = editor(device=device, **STEPS, whiten=True)
        load_state(other, folder / "state.safetensors")
        for resumed in (one, other):
            resumed.apply(requests()[4:], measure=False)
        found["resumed"] = other.digests()
        assert other.digests() == one.digests() != before
        one.save(folder / "model")
        found["saved"] = Editor.from_pretrained(folder / "model", modules=MODULES, learning_rate=1e-3, device=device).digests()
        one.restore()
        assert one.digests() == before
        return found


def stream(streamed: int, pinned: bool, device: str) -> Any:
    """The same edits with layers that are read from disk when a pass comes to them."""
    with _On(device) as on:
        plan = loading.plan_within(MODEL, 2**30, Work(batch_tokens=64, edits_per_turn=4, process=0), choose=lambda _: MODULES)
        plan = replace(plan, streamed=streamed, hidden_limit=2**12)
        loaded = loading.load_planned(MODEL, plan, choose=lambda _: MODULES, device=pretrained.choose_device(device), pinned=pinned)
        on.callback(loaded.close)
        tokenizer, given = pretrained.load_tokenizer(MODEL), {"decoder": loaded.decoder, "originals": loaded.originals}
        one = Editor.of_loaded(loaded.model, tokenizer, MODEL, modules=MODULES, learning_rate=1e-3, batch_tokens=64, **STEPS, **given)
        one.apply(requests(4), measure=False)
        return one.digests(), generate(loaded.decoder, one.tokenizer, ["Perl"], max_new_tokens=2)


def run(folder: Path, device: str) -> tuple[str, dict[str, Any], dict[str, str]]:
    """A run of the command line with a text: the line that tells of the model, metrics, digests."""
    with _On(device):
        edits = write_records(folder / "edits.jsonl", [{"prompt": r["prompt"], "target": r["ans"]} for r in RECORDS[:4]])
        settings = ["--modules", "model.layers.2.mlp.up_proj", "--learning-rate", "1e-3", "--edits-per-turn", 2, "--tracking-uri", "none"]
        flags = ["edit", "--model", MODEL, "--edits", edits, "--output", folder / "out", *settings, "--generate", 1]
        outcome = run_command_line(*flags, "--device", device)
        assert outcome.code == 0, outcome.stderr
        metrics = json.loads((folder / "out" / "metrics.json").read_text())
        written = json.loads((folder / "out" / "run.json").read_text())
        models = next(line for line in outcome.stderr.splitlines() if line.startswith("model "))
        for changing in ("seconds", "peak_memory_bytes"):
            metrics.pop(changing)
        return models, metrics, written["digests_after"]
