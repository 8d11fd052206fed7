"""What a run would import and look up first, done once in the process that tests fork theirs from (:mod:`tests.support.forked`)."""

import importlib
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false"}

import torch

from tests.support.command_line import conclude_cheaply, run_command_line
from tests.support.tiny_runs import RECORDS, arguments, write_records

torch.set_num_threads(1)
for family in ("gptj", "llama", "mistral", "qwen2", "phi3", "gemma3"):
    importlib.import_module(f"transformers.models.{family}.modeling_{family}")
if find_spec("deepspeed"):
    importlib.import_module("workers.autotp")
    importlib.import_module("deepspeed.inference.engine")
conclude_cheaply()
with tempfile.TemporaryDirectory() as folder:
    edits = write_records(Path(folder) / "edits.jsonl", RECORDS[:2])
    assert run_command_line(*arguments(edits, Path(folder) / "out")).code == 0
