"""How the time of a turn grows: with the edits in it, and with the depth of the model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from editing import Editor, EditorConfig
from editing.turn import Turn
from tests.benchmarks.workload import Workload, seconds

EDITS_PER_TURN = (1, 10, 100, 1_000)
DEPTHS = (4, 8, 16, 32)
_WIDTH = 256
_REPETITIONS = 3


@dataclass(frozen=True)
class Point:
    """One size, and what a turn takes there.

    Attributes:
        size: Edits in a turn, or layers.
        edits: Edits in a turn.
        seconds: Median wall time of a turn, with its share of the prefix.
    """

    size: int
    edits: int
    seconds: float


def over_edits(workload: Workload, sizes: Sequence[int] = EDITS_PER_TURN) -> Iterator[Point]:
    """Turns of several sizes on one model, each after a warm-up; sizes that the file has no turn of are left out."""
    for size in sizes:
        own = replace(workload, edits_per_turn=size, num_turns=1 + _REPETITIONS)
        editor = own.load_editor()
        if turns := own.turns(editor, at_least=0):
            yield Point(size, size, _seconds(editor, turns))


def over_depth(workload: Workload, depths: Sequence[int] = DEPTHS) -> Iterator[Point]:
    """Turns of the same size on random Llamas of several depths, of which the last quarter of the layers is edited."""
    tokenizer = AutoTokenizer.from_pretrained(workload.model)
    for depth in depths:
        torch.manual_seed(0)
        heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}
        shape = {"hidden_size": _WIDTH, "intermediate_size": 4 * _WIDTH, "num_hidden_layers": depth, **heads}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **shape)).eval()
        modules = tuple(f"model.layers.{i}.mlp.{name}_proj" for i in range(depth - depth // 4, depth) for name in ("gate", "up"))
        editor = Editor(model, tokenizer, EditorConfig(modules=modules, learning_rate=1e-6, edits_per_turn=workload.edits_per_turn))
        turns = replace(workload, num_turns=1 + _REPETITIONS).turns(editor)
        yield Point(depth, workload.edits_per_turn, _seconds(editor, turns))


def _seconds(editor: Editor, turns: Sequence[Turn]) -> float:
    """Of a turn alone, without the others of a window; the first of several warms up."""

    def run(turn: Turn) -> None:
        (prepared,) = editor.prepare([turn])
        editor.apply_turn(prepared, measure=False)

    times = [seconds(partial(run, turn)) for turn in turns]
    return median(times[1:] or times)
