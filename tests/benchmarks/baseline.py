"""The method with none of this project's fast paths, run the way its published implementation runs it: the yardstick.

    per group of edits      whole model forward on right-padded inputs, logits at all positions, backward with the
                            edited weights' own gradients; keys and value gradients of the answer rows go to disk
    per group, per module   float32 normalizer updated, one per shape (d_in, d_out)
    per turn, per module    rows read back, normalized, (K'K + I) S = K'T solved in float32, dense S added

Written from the formulas (see editing/method/shift.py and editing/method/moments.py), apart from ``editing`` in all but the
tokenized input, so that agreement of the two means something.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from editing.model.tokenization import AnswerSequence

_IGNORED = -100
"""Label of a position that predicts no answer token."""

GROUP_SIZE = 10
"""Sequences that go through the model together."""

_EPSILON = torch.finfo(torch.float32).eps


@dataclass
class Normalizer:
    """Lifelong float32 statistics of ``z = [K | G]``, updated by one group of one module at a time."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    scatter: Tensor = field(default_factory=lambda: torch.zeros(()))

    def update(self, features: Tensor) -> None:
        """Add ``m`` rows: ``m * unbiased variance + N * m * delta^2 / (N + m)`` to the scatter. A lone row has variance 0."""
        m, n = len(features), self.count
        delta = features.mean(0) - self.mean
        variance = features.var(0) if m > 1 else torch.zeros_like(delta)
        self.scatter = self.scatter + m * variance + (n * m / (n + m)) * delta.square()
        self.mean = self.mean + (m / (n + m)) * delta
        self.count = n + m

    def __call__(self, features: Tensor) -> Tensor:
        std = (self.scatter / (self.count - 1 + _EPSILON)).sqrt()
        return (features - self.mean) / (std + _EPSILON)


class BaselineEditor:
    """A model in float32, edited turn by turn, on the device that it is on. With a model in float64 everything is float64.

    Args:
        model: A Hugging Face causal language model; edited in place.
        modules: Names of the linears to edit.
        learning_rate: Scale of the targets.
        folder: Where keys and value gradients are kept within a turn.
        group_size: Edits over whose answer tokens the loss is averaged.
        pad_token: Token id at the right of short inputs; masked, so any will do.
        solve_dtype: Precision of the solve; by default that of the rows, as published.
    """

    def __init__(
        self,
        model: Any,
        modules: Sequence[str],
        *,
        learning_rate: float,
        folder: Path,
        group_size: int = GROUP_SIZE,
        pad_token: int = 0,
        solve_dtype: torch.dtype | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.modules: dict[str, nn.Linear] = {name: model.get_submodule(name) for name in modules}
        for module in self.modules.values():
            module.weight.requires_grad_(True)
        self.normalizers = {_shape(m): Normalizer() for m in self.modules.values()}
        self._learning_rate, self._folder, self._group_size, self._pad_token = learning_rate, folder, group_size, pad_token
        self._solve_dtype = solve_dtype

    def apply_turn(self, sequences: Sequence[AnswerSequence]) -> None:
        """Write one turn's edits, given in any order."""
        ordered = sorted(sequences, key=lambda s: len(s.input_ids), reverse=True)
        groups = [ordered[a : a + self._group_size] for a in range(0, len(ordered), self._group_size)]
        for number, group in enumerate(groups):
            self._capture(number, group)
        shifts = {name: self._solve(name, len(groups)) for name in self.modules}
        with torch.no_grad():
            for name, shift in shifts.items():
                self.modules[name].weight += shift.T.to(self.modules[name].weight.dtype)

    def _capture(self, number: int, group: Sequence[AnswerSequence]) -> None:
        """Run a group forward and back, update the normalizers and put its rows on disk."""
        input_ids, mask, labels = (t.to(self.model.device) for t in make_batch(group, self._pad_token))
        answers = labels != _IGNORED
        with self._recorded(answers) as rows:
            logits = self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
            F.cross_entropy(_at_least_float32(logits[answers]), labels[answers]).backward()
        self.model.zero_grad(set_to_none=True)
        for name, module in self.modules.items():
            self.normalizers[_shape(module)].update(torch.cat((rows[name]["keys"], rows[name]["gradients"]), dim=1))
            save_file({kind: values.cpu() for kind, values in rows[name].items()}, self._file(number, name))

    def _solve(self, name: str, num_groups: int) -> Tensor:
        """The dense shift ``(d_in, d_out)`` of one module."""
        files, device = (self._file(number, name) for number in range(num_groups)), self.model.device
        parts = [{kind: _at_least_float32(rows.to(device)) for kind, rows in load_file(file).items()} for file in files]
        keys, gradients = (torch.cat([part[kind] for part in parts]) for kind in ("keys", "gradients"))
        normalized = self.normalizers[_shape(self.modules[name])](torch.cat((keys, gradients), dim=1))
        norms = normalized[:, : keys.shape[1]].square().sum(1, keepdim=True)
        targets = -self._learning_rate * norms * normalized[:, keys.shape[1] :]
        return solve_dense(keys.to(self._solve_dtype or keys.dtype), targets.to(self._solve_dtype or targets.dtype))

    @contextmanager
    def _recorded(self, answers: Tensor) -> Iterator[dict[str, dict[str, Tensor]]]:
        """Collect each module's inputs and output gradients at the answer rows ``(B, T)``."""
        rows: dict[str, dict[str, Tensor]] = {name: {} for name in self.modules}

        def keep_input(name: str) -> Any:
            return lambda _module, inputs, _output: rows[name].update(keys=inputs[0].detach()[answers])

        def keep_gradient(name: str) -> Any:
            return lambda _module, _inputs, outputs: rows[name].update(gradients=outputs[0].detach()[answers])

        with ExitStack() as stack, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook")  # the lowest module's input needs no gradient
            for name, module in self.modules.items():
                stack.callback(module.register_forward_hook(keep_input(name)).remove)
                stack.callback(module.register_full_backward_hook(keep_gradient(name)).remove)
            yield rows

    def _file(self, number: int, name: str) -> Path:
        return self._folder / f"{number}.{name}.safetensors"


def solve_dense(keys: Tensor, targets: Tensor) -> Tensor:
    """``(K'K + I)^-1 K'T`` ``(d_in, d_out)`` in the arguments' dtype, by a general solver on the d_in x d_in system."""
    system = keys.T @ keys
    system.diagonal().add_(1.0)
    return torch.linalg.solve(system, keys.T @ targets)


def make_batch(group: Sequence[AnswerSequence], pad_token: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Input ids, attention mask and labels ``(B, T)``, padded at the right."""
    width = max(len(s.input_ids) for s in group)
    input_ids = torch.full((len(group), width), pad_token)
    mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, _IGNORED)
    for b, sequence in enumerate(group):
        end = len(sequence.input_ids)
        input_ids[b, :end] = torch.tensor(sequence.input_ids)
        mask[b, :end] = 1
        labels[b, sequence.first_row : end] = torch.tensor(sequence.answer_ids)
    return input_ids, mask, labels


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _shape(module: nn.Linear) -> tuple[int, int]:
    return module.in_features, module.out_features
