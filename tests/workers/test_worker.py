"""A worker needs DeepSpeed for shards alone, and refuses what cannot be cut before it loads or waits for anything."""

import subprocess
import sys
import time

import pytest

from editing import InputError, ModelError
from tests.support.paths import PARITY, ROOT
from workers.worker import LocalWorker, Placement, WorkerSpec

LLAMA = str(PARITY / "llama-tiny" / "model")
SPEC = WorkerSpec(model=LLAMA, device="cpu", modules=("model.layers.1.mlp.down_proj",), learning_rate=1e-3, options={})


@pytest.mark.thorough
def test_a_whole_model_is_loaded_without_deepspeed() -> None:
    code = f"""
import sys
from workers.worker import LocalWorker, WorkerSpec
worker = LocalWorker(WorkerSpec(model={LLAMA!r}, device="cpu", modules=("model.layers.1.mlp.down_proj",), learning_rate=1e-3, options={{}}))
worker.load()
print([m for m in ("deepspeed", "ray") if m in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip() == "[]"


def test_more_shards_than_attention_heads_are_refused_with_numbers_that_work() -> None:
    with pytest.raises(ModelError, match="4 attention heads, too few for 5 shards; give 1 to 4"):
        LocalWorker(SPEC, Placement(num_shards=5)).load()


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_the_shards_is_refused(rank: int) -> None:
    with pytest.raises(InputError, match="from 0 to 1"):
        Placement(rank=rank, num_shards=2)


def test_a_shard_without_the_others_gives_up_after_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR"):
        monkeypatch.setenv(name, "")  # put back afterwards
    began = time.monotonic()
    with pytest.raises(InputError, match="shard 1 of 2 could not connect to the other processes"):
        LocalWorker(SPEC, Placement(rank=1, num_shards=2, port=1, timeout=2)).load()
    assert time.monotonic() - began < 90  # its timeout, and loading on a busy machine
