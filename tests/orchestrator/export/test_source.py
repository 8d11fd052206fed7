"""What no export can change alone is refused in one line."""

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from editing.errors import ModelError
from orchestrator.export.source import check_modules


def layers() -> nn.Module:
    model = nn.Module()
    model.up, model.head, model.conv = nn.Linear(4, 6), nn.Linear(4, 9, bias=False), Conv1D(6, 4)
    model.embedding = nn.Embedding(9, 4)
    model.head.weight = model.embedding.weight
    return model


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("down", "tiny: has no down, so it is not the model that this run was made from; give that one with --model"),
        ("embedding", "tiny: embedding is a Embedding, expected a Linear or Conv1D; this run cannot be exported"),
        ("head", "tiny: the weight of head is also embedding.weight, so it cannot be changed alone; this run cannot be exported"),
    ],
)
def test_a_module_that_no_export_could_change_is_one_line(module: str, told: str) -> None:
    with pytest.raises(ModelError) as raised:
        check_modules("tiny", layers(), ["up", "conv", module])
    assert str(raised.value) == told
