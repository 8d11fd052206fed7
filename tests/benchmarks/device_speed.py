"""Checks of ``make gpu-check`` against the plain baseline: the solve, and whole turns of models as wide as those that the paper edits.

The models of the turns are random, in float32, and have two layers each; all else has its real size, the vocabulary too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from editing import Editor, EditorConfig
from editing.files import pretrained
from editing.memory.budget import free_memory, show_size
from editing.turn import Turn, in_turns, tokenize
from tests.benchmarks.ablation import total_shifts
from tests.benchmarks.device_rows import Finding, Setting, below, reset_peak, skipped
from tests.benchmarks.solves import NUM_ROWS, SHAPES, SolveShape, error_in_float64, time_solves
from tests.benchmarks.streamed import MISTRAL_7B, facts_of
from tests.benchmarks.turns import compare
from tests.benchmarks.workload import Workload, make_baseline, relative_difference
from tests.support.paths import PARITY
from tests.support.published import worst

SOLVE = 1e-5
"""Relative error of the shift on random directions against a d_in x d_in solve in float64."""
TURN = 1e-3
"""Relative error of a turn's shift against the baseline's with its system in float64: in float32 that badly conditioned system is off by as much."""


@dataclass(frozen=True)
class Wide:
    """A model of a real width with two layers, of which the upper one is edited.

    Attributes:
        shape: The edited linear, with the name of the model.
        family: Hugging Face model type.
        module: Name of the edited linear.
        config: Fields of its configuration.
    """

    shape: SolveShape
    family: str
    module: str
    config: dict[str, Any]


def _llama(hidden: int, inner: int, heads: int, kv_heads: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return {**sizes, "vocab_size": vocabulary, "num_hidden_layers": 2, "pad_token_id": None, **more}


_GPTJ, _MISTRAL, _LLAMA, _QWEN, _PHI, _GEMMA = SHAPES
WIDE = (
    Wide(_GPTJ, "gptj", "transformer.h.1.mlp.fc_out", {"n_embd": 4096, "n_head": 16, "n_layer": 2, "vocab_size": 50400}),
    Wide(_MISTRAL, "mistral", "model.layers.1.mlp.down_proj", _llama(4096, 14336, 32, 8, MISTRAL_7B["vocab_size"], sliding_window=None)),
    Wide(_LLAMA, "llama", "model.layers.1.mlp.gate_proj", _llama(4096, 14336, 32, 8, 128256)),
    Wide(_QWEN, "qwen2", "model.layers.1.mlp.gate_proj", _llama(3584, 18944, 28, 4, 152064)),
    Wide(_PHI, "phi3", "model.layers.1.mlp.down_proj", _llama(5120, 17920, 40, 10, 100352)),
    Wide(_GEMMA, "gemma3_text", "model.layers.1.mlp.gate_proj", _llama(5376, 21504, 32, 16, 262208, head_dim=128)),
)
_TINY = SolveShape("a tiny Llama", "gate_proj", 512, 224)  # wider than a solve has rows, as the real ones are
NARROW = (Wide(_TINY, "llama", "model.layers.1.mlp.gate_proj", _llama(512, 224, 4, 2, 641)),)


@dataclass(frozen=True, kw_only=True)
class RandomWorkload(Workload):
    """Turns of a random model on a device.

    Attributes:
        wide: The model.
        device: Where it is.
    """

    wide: Wide
    device: torch.device

    def load_model(self) -> Any:
        """The model in float32; the same weights each time."""
        torch.manual_seed(0)
        with self.device:
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(self.wide.family, **self.wide.config), dtype=torch.float32)
        linear, shape = model.get_submodule(self.wide.module), self.wide.shape
        assert (linear.in_features, linear.out_features) == (shape.d_in, shape.d_out)
        return model.eval()

    def load_editor(self) -> Editor:
        """With the published settings, which are the baseline's."""
        config = EditorConfig(modules=(self.wide.module,), learning_rate=1e-6, edits_per_turn=self.edits_per_turn)
        return Editor(self.load_model(), pretrained.load_tokenizer(PARITY / "llama-tiny" / "model"), config)

    def turns(self, editor: Editor) -> list[Turn]:
        """Turns of made-up facts."""
        facts = facts_of(self.num_turns * self.edits_per_turn)
        edits = [tokenize(editor.joiner, fact, max_tokens=editor.decoder.max_tokens) for fact in facts]
        return list(in_turns(edits, self.edits_per_turn))


def solves(setting: Setting) -> Iterator[Finding]:
    """The solve at the shapes of the paper's modules."""
    shapes = [wide.shape for wide in (NARROW if setting.small else WIDE)]
    for found in time_solves(quick=False, device=setting.device, shapes=shapes):
        error = error_in_float64(found.shape, setting.device)
        name = f"{_called(found.shape)}, {NUM_ROWS} rows"
        yield below(name, error, SOLVE, what="error of the shift, against float64", more=_beside(found.difference, found.baseline, found.ours))


def turns(setting: Setting) -> Iterator[Finding]:
    """Turns of 100 edits: times of both, the first turn a warm-up; and the shift of one turn against the baseline's with a solve in float64."""
    for wide in NARROW if setting.small else WIDE:
        yield _turn(wide, setting)


def _turn(wide: Wide, setting: Setting) -> Finding:
    count = 20 if setting.small else 100
    work = RandomWorkload(model=wide.shape.model, edits=Path(), num_turns=3, edits_per_turn=count, wide=wide, device=setting.device)
    name, needed, free = f"{_called(wide.shape)}, {count} edits a turn", _bytes_needed(wide), free_memory(setting.device)
    if free < needed:
        return skipped(name, f"error of the shift < {TURN:.0e}", f"needs about {show_size(needed)}, {show_size(free)} are free")
    error = _error_of_a_turn(work)
    reset_peak(setting.device)
    found = compare(work)
    baseline, ours = median(found.baseline[1:]), median(found.editor[1:])
    speed = f"{found.capture_speed / 1e12:.2f} Tflop/s"
    more = f"{_beside(found.worst[1], baseline, ours)}; {speed}"
    return below(name, error, TURN, what="error of the shift against the baseline's, solved in float64", more=more)


def _beside(difference: float, baseline: float, ours: float) -> str:
    """What the published baseline gives beside this project: the difference of the shifts, and seconds of both."""
    times = f"{baseline:.3f} s and {ours:.3f} s, {baseline / ours:.2g} times as fast"
    return f"{difference:.1e} from the baseline in float32; {times}"


def _error_of_a_turn(work: RandomWorkload) -> float:
    """Relative error of the first turn's shift against the baseline's, whose d_in x d_in system is solved in float64."""
    editor = work.load_editor()
    turn = work.turns(editor)[0]
    with TemporaryDirectory() as folder:
        baseline = make_baseline(editor, work.load_model(), Path(folder), solve_dtype=torch.float64)
        before = {name: module.weight.detach().clone() for name, module in baseline.modules.items()}
        baseline.apply_turn(turn.sequences)
    editor.apply_turn(editor.prepare([turn])[0], measure=False)
    expected = {name: module.weight.detach() - before[name] for name, module in baseline.modules.items()}
    return worst({name: relative_difference(shift, expected[name]) for name, shift in total_shifts(editor).items()})


def _bytes_needed(wide: Wide) -> int:
    """Two models with gradient, copy and shift of the edited weight, the baseline's float64 system with its factors, and what passes need."""
    config = AutoConfig.for_model(wide.family, **wide.config)
    skeleton = pretrained.make_skeleton(wide.shape.model, config, torch.float32)
    weights = sum(p.numel() for p in skeleton.parameters())
    return 4 * (2 * weights + 4 * wide.shape.d_in * wide.shape.d_out) + 3 * 8 * wide.shape.d_in**2 + 2 * 2**30


def _called(shape: SolveShape) -> str:
    return f"{shape.model}, {shape.module} {shape.d_in} x {shape.d_out}"
