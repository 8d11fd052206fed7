"""Requests as token ids, for one model: the one place that puts a tokenizer and the model's context length together."""

from dataclasses import dataclass
from typing import Any

from editing.datasets import BadRecord, NumberedRequest
from editing.errors import InvalidRequest
from editing.requests import EditRequest
from editing.turn import TokenizedEdit, tokenize
from workers.protocol import Worker


@dataclass(frozen=True, slots=True)
class RequestTokenizer:
    """Tokenizes requests for one model.

    Attributes:
        tokenizer: The model's joiner, or its tokenizer for the default rule.
        max_tokens: The model's context length; ``None`` if it has no limit.
    """

    tokenizer: Any
    max_tokens: int | None = None

    @classmethod
    def of(cls, worker: Worker) -> "RequestTokenizer":
        """That of a worker's model, which is loaded."""
        return cls(worker.joiner, worker.max_tokens)

    def tokenize(self, request: EditRequest, record: int) -> TokenizedEdit:
        """Tokenize a request with all its probes.

        Args:
            request: The request.
            record: Number of its record in its input.

        Raises:
            InvalidRequest: An answer gives no token, or a prompt with its answer exceeds the model's context.
        """
        return tokenize(self.tokenizer, request, max_tokens=self.max_tokens, record=record)

    def tokenize_record(self, record: NumberedRequest | BadRecord) -> TokenizedEdit | BadRecord:
        """The edit of a record, or why it cannot be used with this model."""
        if isinstance(record, BadRecord):
            return record
        try:
            return self.tokenize(record.request, record.number)
        except InvalidRequest as error:
            return BadRecord(record.number, str(error), record.request.in_short())
