"""The run's model in memory, with the weights of any state of it put in: what an export and an engine are compared with."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from editing.config import DEFAULT_BATCH_TOKENS
from editing.files import pretrained
from editing.messages import Asked
from editing.model.decoder import Decoder
from editing.model.generation import generate
from editing.model.joining import Joiner
from editing.model.prefix import perplexity, run_prefix
from editing.monitoring.evaluation import Predictions, predict_probes, score, summarize
from editing.monitoring.health import fixed_text
from orchestrator.export.source import RunSource
from orchestrator.run.ledger import Entry
from orchestrator.tokenizing import RequestTokenizer

METRICS = ("efficacy", "generalization", "locality_retention", "perplexity")


class Reference:
    """The Hugging Face model of a run.

    Args:
        source: The run, whose base model is loaded.
    """

    def __init__(self, source: RunSource) -> None:
        dtype: pretrained.DTypeName = "float32" if source.state.settings["dtype"] == "float32" else "bfloat16"
        self._model, tokenizer = pretrained.load(source.folder, device=source.device, dtype=dtype)
        self._decoder = Decoder(self._model)
        self._joiner = Joiner(tokenizer, source.join, num_embeddings=self._decoder.config.vocab_size)
        self._linears: dict[str, nn.Linear] = {name: self._model.get_submodule(name) for name in source.modules}

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Within this context the model has these weights, by module name and as it stores them, rounded to its precision."""
        before = {name: self._linears[name].weight.data for name in weights}
        try:
            for name, weight in weights.items():
                self._linears[name].weight.data = weight.to(before[name])
            yield
        finally:
            for name, weight in before.items():
                self._linears[name].weight.data = weight

    def typed(self, asked: Asked) -> str:
        """A question as an engine is given it to go on from: of a chat what the template writes, without the token that engines put before it."""
        joiner, prompt = self._joiner.asking(asked)
        begin = self._joiner.tokenizer.bos_token
        return prompt if isinstance(asked, str) else joiner.text(prompt).removeprefix(begin or "")

    def texts(self, weights: Mapping[str, Tensor], prompts: Sequence[Asked], max_new_tokens: int) -> list[str]:
        """What the model with these weights writes after prompts, greedily."""
        with self.holding(weights):
            return generate(self._decoder, self._joiner, prompts, max_new_tokens=max_new_tokens)

    def compare(self, entries: Sequence[Entry], states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, float | None]]:
        """Metrics of several states of the model on the same edits.

        Args:
            entries: The edits.
            states: Weights by module name, by the state's name; the first is the one whose answers are to be kept.

        Returns:
            By the state's name, the metrics :data:`METRICS`; ``None`` where no edit has such a probe.
        """
        tokenizer = RequestTokenizer(self._joiner, self._decoder.max_tokens)
        edits = [tokenizer.tokenize(entry.request, entry.record) for entry in entries]
        kept: Predictions | None = None
        found: dict[str, dict[str, float | None]] = {}
        for state, weights in states.items():
            with self.holding(weights):
                predictions = predict_probes(self._decoder, edits)
                text = run_prefix(self._decoder, [fixed_text(self._joiner, self._decoder.max_tokens)], stop=0, batch_tokens=DEFAULT_BATCH_TOKENS)
                confusion = perplexity(self._decoder, text, start=0, batch_tokens=DEFAULT_BATCH_TOKENS)
            kept = kept or predictions
            means = summarize(score(edits, predictions, kept))
            found[state] = {**{name: means.get(name) for name in METRICS}, "perplexity": confusion}
        return found
