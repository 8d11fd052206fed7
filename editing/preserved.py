"""What edits must leave as it is: a text that no edit is about, the outputs that its predictions depend on, and a turn's neighbours.

text        --unedited model, once-------------> keys of all tokens --> by module, what its ridge knows of the text     preserve
            --unedited model, there and back, once--> gradients of its outputs --> which of them matter                output_side
neighbours  --model as it is, for each turn----> keys where the answers would begin --> what a turn's ridge knows     neighbours
            --frozen layers, once, and for each turn--> which names are like the subjects                               alike
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from editing.alike import Likeness, question_about, read_names
from editing.config import EditorConfig
from editing.edited_weights import EditedWeights
from editing.method.features import Features
from editing.method.output_side import OutputSide
from editing.method.preserve import PreservingRidge, ridges_of_keys
from editing.method.rows import Site
from editing.model.capture import capture
from editing.model.decoder import Decoder
from editing.model.joining import Joiner
from editing.model.prefix import Prefixed, run_prefix
from editing.model.token_keys import token_keys
from editing.model.tokenization import AnswerSequence
from editing.neighbours import check_count, neighbours_of
from editing.ranges import consecutive
from editing.reference_text import ReferenceText
from editing.sharding.collectives import Collectives, rows_of_first_replica
from editing.turn import PreparedTurn


class Preserved:
    """What one editor preserves. All workers ask for the same in the same order.

    Args:
        decoder: The model.
        joiner: Turns text into its tokens.
        modules: The edited modules by name.
        sites: At which rows each of them is edited.
        start: First layer of the suffix.
        weights: The modules' weights, which have a way to be the unedited ones for a while.
        config: What is preserved, and how.
        collectives: How the shards' and replicas' parts come together.

    Attributes:
        text: The reference text.

    Raises:
        InputError: The text cannot be read, or more neighbours are asked for than there are.
    """

    def __init__(
        self,
        decoder: Decoder,
        joiner: Joiner,
        modules: Mapping[str, nn.Linear],
        sites: Mapping[str, Site],
        start: int,
        weights: EditedWeights,
        config: EditorConfig,
        collectives: Collectives,
    ) -> None:
        self._decoder, self._joiner, self._modules, self._start = decoder, joiner, modules, start
        self._weights, self._config, self._collectives = weights, config, collectives
        self._at_answers = {name: module for name, module in modules.items() if sites[name] == "answer"}
        check_count(config.preserve_neighbours, alike=self._knows_alike)
        self.text = ReferenceText.of(config, joiner, decoder.max_tokens)
        self._of_text: dict[str, PreservingRidge] | None = None
        self._of_outputs: dict[str, OutputSide] | None = None
        self._likeness: Likeness | None = None

    def of_text(self) -> dict[str, PreservingRidge]:
        """By module, what its ridge knows of the text; empty if there is none to preserve. The unedited model runs over it once, when first asked."""
        if self._of_text is None:
            self._of_text = self._observe_text() if self.text.passages else {}
        return self._of_text

    def of_outputs(self) -> dict[str, OutputSide]:
        """As :meth:`of_text`: by module edited at the answers, which of its outputs the text depends on; empty unless asked for."""
        if self._of_outputs is None:
            self._of_outputs = self._observe_outputs() if self._config.weighs_outputs and self.text.predicted else {}
        return self._of_outputs

    def of_neighbours(self, prepared: PreparedTurn) -> dict[str, PreservingRidge]:
        """By module edited at the answers, the second moment of the keys at which the turn's neighbours would be answered."""
        config, replica = self._config, self._collectives.replica
        if not config.holds_neighbours:
            return {}
        alike = self._alike if self._knows_alike else None
        of_each = neighbours_of(prepared.turn, self._joiner, config.preserve_neighbours, self._decoder.max_tokens, alike)
        everyone, ranges = [neighbour for several in of_each for neighbour in several], consecutive(len(several) for several in of_each)
        shares = [[number for i in share for number in ranges[i]] for share in prepared.shares]
        own = self._prefixed([everyone[number] for number in shares[replica]])
        parts: dict[str, list[Tensor]] = {name: [] for name in self._at_answers}
        for name, keys in token_keys(self._decoder, self._at_answers, own, start=self._start, batch_tokens=config.batch_tokens, of_rows=True):
            parts[name].append(keys)
        positions = [torch.tensor(share, dtype=torch.int64) for share in shares]  # each has one row
        gathered = {name: self._collectives.all_gather_rows(torch.cat(keys), positions) for name, keys in parts.items()}
        return ridges_of_keys(gathered.items(), self._features("keys"), config.preserve, config.preserve_rank, self._decoder.device)

    def _observe_text(self) -> dict[str, PreservingRidge]:
        config = self._config
        with self._weights.unedited():
            prefixed = self._prefixed(self.text.passages)
            found = token_keys(self._decoder, self._modules, prefixed, start=self._start, batch_tokens=config.batch_tokens)
            keys = ((name, rows_of_first_replica(tokens, self._collectives)) for name, tokens in found)
            return ridges_of_keys(keys, self._features("keys"), config.preserve, config.preserve_rank, self._decoder.device)

    def _observe_outputs(self) -> dict[str, OutputSide]:
        config, text = self._config, self.text.predicted
        with self._weights.unedited():
            batches = self._prefixed(text).batches(batch_tokens=config.batch_tokens, device=self._decoder.device)
            weights = torch.ones(sum(len(sequence.answer_ids) for sequence in text))
            rows = capture(self._decoder, self._at_answers, batches, weights, start=self._start, batch_tokens=config.batch_tokens)
        features = self._features("values")
        found = {name: rows_of_first_replica(gradients, self._collectives) for name, gradients in rows.value_gradients.items()}
        return {name: OutputSide.of_gradients(gradients, config.preserve_outputs, features[name]) for name, gradients in found.items()}

    @property
    def _knows_alike(self) -> bool:
        """Whether neighbours are chosen by what frozen layers say of them; a model that is edited in layer 0 has none."""
        return self._config.preserve_alike and self._start > 0

    def _alike(self, subjects: Sequence[str]) -> list[list[str]]:
        """Of each subject the names, the likest first."""
        names = read_names()
        if self._likeness is None:
            self._likeness = Likeness(self._states(names))
        return [[names[number] for number in order] for order in self._likeness.ranked(self._states(subjects))]

    def _states(self, names: Sequence[str]) -> Tensor:
        """``(n, d)`` float32 state of the last token of each name's question, after the frozen layers; the first replica's for all."""
        room = slice(None if self._decoder.max_tokens is None else -self._decoder.max_tokens, None)
        ids = [self._joiner.as_typed.prompt_ids(question_about(name))[room] for name in names]
        hidden = self._prefixed([AnswerSequence(one, (0,)) for one in ids]).hidden
        assert hidden is not None  # there are frozen layers
        return rows_of_first_replica(torch.stack([hidden.get(i)[-1] for i in range(len(ids))]).float().cpu(), self._collectives)

    def _prefixed(self, sequences: Sequence[AnswerSequence]) -> Prefixed:
        config = self._config
        return run_prefix(self._decoder, sequences, stop=self._start, batch_tokens=config.batch_tokens, dtype=config.prefix_dtype)

    def _features(self, axis: Literal["keys", "values"]) -> dict[str, Features]:
        return {name: Features(self._weights.shards[name], axis, self._collectives) for name in self._modules}
