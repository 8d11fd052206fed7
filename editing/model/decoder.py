"""Any Hugging Face decoder as prefix, suffix, and head on chosen rows.

    input_ids -> embeddings -> layers 0 .. s-1 | layers s .. L-1 -> final norm -> (chosen rows) -> head -> logits
                 `------- prefix, frozen ------'  `-- suffix: holds every edited module --'

Prefix and suffix run through the model's own forward. So masks, positions and everything else that a family does between its
layers are left to the model. A layer that is not to run keeps its index, since families pick masks by index, and returns its
input. The last layer below the suffix returns the cached hidden states instead.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from types import MappingProxyType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from editing.errors import ModelError, first_line, ran_out_of_memory
from editing.files.pretrained import context_length
from editing.model.residency import Residency, Resident

HEAD_CHUNK_ELEMENTS = 2**25
"""Logits computed at a time: 128 MB in float32, still wide enough for full matrix-multiply speed."""

HEAD_BLOCK = 4096
"""Words of the head whose logits are computed at a time where their table is not wanted: for the likeliest token on a processor, and for losses."""

NO_PAST: Mapping[str, Any] = MappingProxyType({})


class Precedes(Protocol):
    """Tokens before those of a batch, as attention keeps them; or what is to keep the batch's own for others."""

    def arguments(self, body: Any, width: int) -> dict[str, Any]:
        """Further arguments of the body that runs ``width`` tokens after these."""
        ...


class Decoder:
    """A view of a causal language model as prefix, suffix and head. Holds no weights of its own.

    Args:
        model: A Hugging Face causal language model.
        residency: When the weights of which layers are in memory; by default all of them, always.

    Attributes:
        shares: By layers, whether a beginning can run once, apart from what follows it (:mod:`editing.model.prefix` finds out).
        continues: By first layer, whether sequences can run in two parts (:mod:`editing.model.continuation` finds out).

    Raises:
        ModelError: No decoder layers or no head were found in the model.
    """

    def __init__(self, model: Any, residency: Residency | None = None) -> None:
        self.model = model
        self.residency = residency or Resident()
        self.config = model.config.get_text_config(decoder=True)
        self.body = _find_body(model)
        self.head = _find_head(model)
        self.table: Any = model.get_input_embeddings()
        self.layers_path, self.layers = _find_layers(model, self.body, self.config.num_hidden_layers)
        self._returns_tuple = False
        self.shares: dict[range, bool] = {}
        self.continues: dict[int, bool] = {}

    @property
    def is_tied(self) -> bool:
        """Whether the head's weight is the embedding table's."""
        return self.head.weight is self.table.weight

    @property
    def turns_by_length(self) -> bool:
        """Whether rotary positions depend on how long a sequence is."""
        found = getattr(self.config, "rope_parameters", None) or {}
        several = [found, *(one for one in found.values() if isinstance(one, Mapping))]  # of each kind of layers
        return any(one.get("rope_type") in ("longrope", "dynamic") for one in several)

    @property
    def head_dtype(self) -> torch.dtype:
        """Precision in which the head computes."""
        weight = self.head.weight
        assert isinstance(weight, Tensor)
        return weight.dtype

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        """Where the layers run."""
        return self.residency.device or next(self.layers[-1].parameters()).device

    @property
    def max_tokens(self) -> int | None:
        """Context length in tokens, or ``None`` if the configuration states none."""
        return context_length(self.config)

    def layer_of(self, module_name: str) -> int:
        """Index of the decoder layer that holds a module.

        Raises:
            ModelError: The module is outside the decoder layers.
        """
        head, _, rest = module_name.partition(self.layers_path + ".")
        if head or not rest:
            raise ModelError(f"module {module_name}: is outside the decoder layers ({self.layers_path}.0 to .{self.num_layers - 1})")
        return int(rest.split(".")[0])

    def row_cost(self, start: int) -> float:
        """Cost of a row in the head, forward and back, in tokens that go through all layers and back through the suffix.

        A layer counts as 12 d^2 parameters. Depends on the configuration only, so that all shards agree.

        Args:
            start: First layer of the suffix.
        """
        layers = 2 * self.num_layers - start
        return float(2 * self.config.vocab_size / (12 * self.config.hidden_size * layers))

    def prefix(self, input_ids: Tensor, stop: int) -> Tensor:
        """The hidden states ``(B, T, d)`` that layer ``stop`` receives. Layers from ``stop`` on do not run."""
        with torch.no_grad():
            return self.span(input_ids, None, 0, stop)

    def suffix(self, input_ids: Tensor, hidden: Tensor | None, start: int, past: "Precedes | None" = None) -> Tensor:
        """Final, normalized hidden states ``(B, T, d)``, given those that layer ``start`` receives, and what precedes them."""
        return self.span(input_ids, hidden, start, self.num_layers, self.after(past, input_ids.shape[1]))

    def after(self, past: "Precedes | None", width: int) -> Mapping[str, Any]:
        """Arguments of :meth:`span` for ``width`` tokens after others."""
        return past.arguments(self.body, width) if past else NO_PAST

    def span(self, input_ids: Tensor, hidden: Tensor | None, first: int, stop: int, attention: Mapping[str, Any] = NO_PAST) -> Tensor:
        """Run layers ``first .. stop - 1`` only.

        Args:
            input_ids: ``(B, T)``.
            hidden: ``(B, T, d)``, the hidden states that layer ``first`` receives; ``None`` only if ``first`` is 0.
            first: First layer that runs.
            stop: Layer after the last one that runs.
            attention: Arguments of the body for keys and values of tokens that precede these.

        Returns:
            ``(B, T, d)``: the hidden states that layer ``stop`` receives; after the last layer the final, normalized ones.
        """
        received: list[Tensor] = []

        def record(hidden: Tensor) -> Tensor:
            received.append(hidden)
            return hidden

        with ExitStack() as stack:
            if first == 0:
                stack.callback(self.layers[0].register_forward_hook(self._note_return_type).remove)
            for i in (*range(first), *range(stop, self.num_layers)):
                stack.enter_context(self._replaced(i, (lambda _: hidden) if i == first - 1 else record if i == stop else _pass_on))
            # with hidden states instead of ids the embedding table is not read; masks and positions take their shape from them
            given = {"input_ids": input_ids} if hidden is None else {"inputs_embeds": hidden}
            final: Tensor = self.body(**given, **attention, use_cache=False).last_hidden_state
        return received[0] if received else final

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``(n, V)`` of chosen rows ``(n, d)`` of the final hidden states."""
        return self._adjusted(self.head(hidden.to(self.head_dtype)))  # Mamba's hidden states are float32, whatever the model is

    def likeliest(self, hidden: Tensor) -> Tensor:
        """The likeliest token ``(n,)`` after each of the chosen rows ``(n, d)``; the first of several that are alike.

        On a processor the head's words are taken in blocks for all rows at once: its weight is then read once, and few logits leave the cache.
        """
        if hidden.device.type != "cpu" or type(self.head) is not nn.Linear:
            return torch.cat([self.logits(hidden[chunk]).argmax(-1) for chunk in self.head_chunks(len(hidden))])
        best, tokens = hidden.new_full((len(hidden),), -torch.inf), torch.zeros(len(hidden), dtype=torch.int64)
        for a, logits in self._blocks(hidden):
            most, at = logits.max(-1)
            better = most > best
            best, tokens = torch.where(better, most, best), torch.where(better, at + a, tokens)
        return tokens

    def losses(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of chosen rows ``(n, d)`` with their labels ``(n,)``, in nats, and whether each label is the likeliest token: ``(n,)`` each.

        The head's words are taken in blocks: the sum over those so far is carried along, and its largest term. So no table of all logits is made.
        """
        if type(self.head) is not nn.Linear:
            found = [self._losses_at_once(hidden[chunk], labels[chunk]) for chunk in self.head_chunks(len(hidden))]
            losses, right = zip(*found, strict=True) if found else ((labels.float(),), (labels > 0,))
            return torch.cat(losses), torch.cat(right)
        most, total, own = (hidden.new_full((len(hidden), 1), value, dtype=torch.float32) for value in (-torch.inf, 0.0, -torch.inf))
        tokens = torch.zeros_like(labels)
        for a, block in self._blocks(hidden):
            logits, number = block.float(), (labels - a).unsqueeze(1)
            found_here = logits.gather(1, number.clamp(0, logits.shape[1] - 1))
            own = torch.where((number >= 0) & (number < logits.shape[1]), found_here, own)
            top, at = logits.max(1, keepdim=True)
            tokens = torch.where((top > most).squeeze(1), at.squeeze(1) + a, tokens)
            top = torch.maximum(top, most)
            total = total * (most - top).exp() + logits.sub_(top).exp_().sum(1, keepdim=True)
            most = top
        return (total.log() + (most - own)).squeeze(1), tokens == labels

    def _losses_at_once(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(hidden)
        return nn.functional.cross_entropy(logits.float(), labels, reduction="none"), logits.argmax(-1) == labels

    def _blocks(self, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Logits ``(n, HEAD_BLOCK)`` of consecutive words, with the first word of each block."""
        head = cast(nn.Linear, self.head)
        hidden, weight, bias = hidden.to(self.head_dtype), head.weight, head.bias
        for a in range(0, len(weight), HEAD_BLOCK):
            block = slice(a, a + HEAD_BLOCK)
            yield a, self._adjusted(nn.functional.linear(hidden, weight[block], None if bias is None else bias[block]))

    def _adjusted(self, logits: Tensor) -> Tensor:
        if cap := getattr(self.config, "final_logit_softcapping", None) or getattr(self.config, "logits_soft_cap", None):  # Gemma, RecurrentGemma
            logits = torch.tanh(logits / cap) * cap
        if scale := getattr(self.config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if scaling := getattr(self.config, "logits_scaling", None):  # Granite
            logits = logits / scaling
        return logits

    def head_chunks(self, num_rows: int) -> Iterator[slice]:
        """Slices of rows, so that the logits of one slice have a bounded size."""
        size = max(1, HEAD_CHUNK_ELEMENTS // self.config.vocab_size)
        return (slice(a, min(a + size, num_rows)) for a in range(0, num_rows, size))

    @torch.no_grad()
    def verify(self) -> None:
        """Check on a short input that prefix, suffix and head together compute the logits of the model.

        Where not all layers are in memory at once, the model is checked as if it ended after the first segment.

        Raises:
            ModelError: The logits differ. The family does something between its layers that this class does not know.
        """
        try:
            found, expected = self._both_ways()
        except Exception as error:  # whatever a family's own forward raises when its layers are not run in one go
            if ran_out_of_memory(error):
                raise
            raise ModelError(f"{self._unsupported}: {type(error).__name__}: {first_line(error)}") from error
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=self._tolerance(expected), equal_nan=True):
            raise ModelError(f"{self._unsupported}: they do not give the model's logits")

    def _both_ways(self) -> tuple[Tensor, Tensor]:
        """Logits ``(T, V)`` of a short input: from the halves, and from the model."""
        input_ids = torch.arange(1, 6, device=self.device).remainder(self.config.vocab_size).unsqueeze(0)
        with closing(self.residency.segments(0, self.num_layers)) as segments, ExitStack() as stack:
            present = next(segments)
            for i in range(present.stop, self.num_layers):
                stack.enter_context(self._replaced(i, _pass_on))
            expected = self.model(input_ids=input_ids, use_cache=False).logits[0].float()
            hidden = self.prefix(input_ids, middle := max(1, present.stop // 2))
            return self.logits(self.suffix(input_ids, hidden, middle)[0]).float(), expected

    def agree(self, both_ways: Callable[[], tuple[Tensor, Tensor]]) -> bool:
        """Whether two ways of running layers over a short input give the same hidden states ``(n, d)``; not if a family's own forward raises."""
        try:
            return self.is_close(*both_ways())
        except Exception as error:  # whatever it raises when it is given keys and values, or those of a part of its layers
            if ran_out_of_memory(error):
                raise
            return False

    def is_close(self, found: Tensor, expected: Tensor) -> bool:
        """Whether hidden states ``(n, d)`` that were computed in another way are those expected, each up to rounding."""
        rounding = 1e-4 if self.head_dtype == torch.float32 else 3e-2
        apart = (found.float() - expected.float()).norm(dim=-1)
        return bool((apart <= rounding * expected.float().norm(dim=-1)).all())  # no number is no match

    def _tolerance(self, expected: Tensor) -> float:
        """What rounding may make of logits. On most machines both ways give the same bits; a part that is left out may change little, too."""
        largest = expected.abs().max().item()
        return 1e-4 * largest if self.head_dtype == torch.float32 else 1e-3 * max(1.0, largest)

    @property
    def _unsupported(self) -> str:
        return f"{type(self.model).__name__}: this architecture is not supported, its layers cannot be run in two halves"

    @contextmanager
    def _replaced(self, index: int, output: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        """Let layer ``index`` return ``output(its input)`` without running."""
        layer = self.layers[index]

        def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
            result = output(hidden_states)
            return (result, None) if self._returns_tuple else result

        before = layer.__dict__.get("forward")
        layer.forward = forward
        try:
            yield
        finally:
            del layer.forward  # which uncovers the class's own forward
            if before is not None:
                layer.forward = before

    def _note_return_type(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._returns_tuple = isinstance(output, tuple)  # GPT-J's blocks return (hidden, attention weights)


def _pass_on(hidden: Tensor) -> Tensor:
    return hidden


def _find_body(model: Any) -> nn.Module:
    """What runs before the head. Some classes name it in ``get_decoder``, some by their base model's prefix, Llama 4 by neither."""
    for found in (getattr(model, "get_decoder", lambda: None)(), getattr(model, "base_model", None), getattr(model, "model", None)):
        if isinstance(found, nn.Module) and found is not model:
            return found
    raise ModelError(f"{type(model).__name__}: expected a decoder-only causal language model")


def _find_head(model: Any) -> nn.Module:
    head: nn.Module | None = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__}: has no language-model head")
    return head


def _find_layers(model: Any, body: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    inside = {id(m) for m in body.modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and id(module) in inside:
            return name, module
    raise ModelError(f"{type(model).__name__}: expected a list of {count} decoder layers, as the configuration says; found none")
