"""The speaker: a process with a copy of the model that answers in the words of any version. For trying out, not for traffic.

python -m orchestrator.service.speaker     lines of JSON on standard input and output

in   {"model": ..., "device": ..., "dtype": ...}                                                  once
     {"id": 1, "state": FILE or null, "prompt" or "messages": ..., "max_tokens": ..., ...}        a question
     {"cancel": 1}                                                                                nobody waits for it any more
out  {"ready": true}   {"id": 1, "text": "..."} ...   {"id": 1, "done": "stop", "usage": ...}   {"id": 1, "error": "..."}
"""

import json
import queue
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from editing.errors import InputError, UltraEditError, first_line
from orchestrator.cli.libraries import ready_libraries

_KEPT_VERSIONS = 3
_UNFINISHED = "�"
"""What the first bytes of a character are decoded to."""


class Speaker:
    """A model, and the weights of the versions that were asked last.

    Args:
        name: Folder or Hub id of the model.
        device: As for an edit.
        dtype: As for an edit.
    """

    def __init__(self, name: str, device: str, dtype: str) -> None:
        from editing.files import pretrained
        from editing.model.decoder import Decoder
        from editing.model.joining import Joiner

        self._model, self._tokenizer = pretrained.load(name, device=pretrained.choose_device(device), dtype=dtype)  # type: ignore[arg-type]
        self._joiner = Joiner.of(self._tokenizer).as_typed
        self._max_tokens = Decoder(self._model).max_tokens
        self._base: dict[str, Any] = {}
        self._versions: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def answer(self, asked: Mapping[str, Any], cancelled: Any) -> Iterator[dict[str, Any]]:
        """Pieces of text, and at the end why it ends.

        Raises:
            InputError: The question does not fit into the model's context, or has no form that the model knows.
        """
        import torch

        ids = self._encoded(asked)
        self._wear(asked["state"])
        pieces = _Pieces(self._tokenizer, asked.get("stop") or [])
        generator = torch.Generator().manual_seed(int(asked.get("seed") or 0))
        reason, count = "length", 0
        for token in self._tokens(ids, asked, generator):
            count += 1
            if cancelled():
                return
            if token in self._ends():
                reason = "stop"
                break
            if text := pieces.add(token):
                yield {"text": text}
            if pieces.stopped:
                reason = "stop"
                break
        if rest := pieces.rest():
            yield {"text": rest}
        usage = {"prompt_tokens": len(ids), "completion_tokens": count, "total_tokens": len(ids) + count}
        yield {"done": reason, "usage": usage}

    def _encoded(self, asked: Mapping[str, Any]) -> list[int]:
        if asked.get("messages") is not None:
            if not getattr(self._tokenizer, "chat_template", None):
                raise InputError("messages: this model has no chat template; use /v1/completions")
            try:
                text = self._tokenizer.apply_chat_template(asked["messages"], tokenize=False, add_generation_prompt=True, enable_thinking=False)
            except Exception as error:  # whatever a template raises for messages that it refuses
                raise InputError(f"messages: the model's chat template refuses them: {first_line(error)}") from None
            ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        else:
            ids = list(self._joiner.prompt_ids(asked["prompt"]))
        if self._max_tokens is not None and len(ids) + asked["max_tokens"] > self._max_tokens:
            raise InputError(f"max_tokens: {len(ids)} tokens of the prompt and {asked['max_tokens']} more exceed the context of {self._max_tokens}")
        return ids

    def _wear(self, state: str | None) -> None:
        """Have the model the weights of a version, or those of the unedited model."""
        weights = dict(self._base) if state is None else {**self._base, **self._stored(state)}
        for name, weight in weights.items():
            linear = self._model.get_submodule(name)
            self._base.setdefault(name, linear.weight.data)
            linear.weight.data = weight.to(self._base[name])

    def _stored(self, state: str) -> dict[str, Any]:
        if state not in self._versions:
            from editing.state import stored_weights

            if not Path(state).is_file():
                raise InputError("model: the weights of this version are no longer kept; GET /v1/models lists those that are")
            self._versions[state] = stored_weights(Path(state))
        self._versions.move_to_end(state)
        while len(self._versions) > _KEPT_VERSIONS:
            self._versions.popitem(last=False)
        return self._versions[state]

    def _tokens(self, ids: list[int], asked: Mapping[str, Any], generator: Any) -> Iterator[int]:
        import torch

        from editing.model.matmul import full_speed

        device, cache = self._model.device, None
        following = torch.tensor([ids], device=device)
        for _ in range(asked["max_tokens"]):
            with torch.no_grad(), full_speed(device, self._model):
                output = self._model(input_ids=following, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            token = _choose(output.logits[0, -1], asked.get("temperature") or 0.0, asked.get("top_p") or 1.0, generator)
            yield token
            following = torch.tensor([[token]], device=device)

    def _ends(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


class _Pieces:
    """Text of tokens, a piece at a time: whole characters, and nothing that could be the beginning of a stop."""

    def __init__(self, tokenizer: Any, stops: list[str]) -> None:
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._given = 0
        self.stopped = False

    def add(self, token: int) -> str:
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        ends = [text.find(stop) for stop in self._stops if stop in text]
        if ends:
            self.stopped = True
            return self._give(text[: min(ends)])
        if text.endswith(_UNFINISHED):
            return ""
        return self._give(text[: len(text) - self._held(text)])

    def rest(self) -> str:
        return "" if self.stopped else self._give(self._tokenizer.decode(self._ids, skip_special_tokens=True))

    def _held(self, text: str) -> int:
        """Characters at the end that may begin a stop."""
        return max((n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)

    def _give(self, text: str) -> str:
        piece, self._given = text[self._given :], max(self._given, len(text))
        return piece


def _choose(logits: Any, temperature: float, top_p: float, generator: Any) -> int:
    import torch

    if temperature <= 0:
        return int(logits.argmax())
    shares = torch.softmax(logits.float().cpu() / temperature, dim=-1)
    ordered, places = shares.sort(descending=True)
    ordered[ordered.cumsum(0) - ordered > top_p] = 0.0
    return int(places[torch.multinomial(ordered, 1, generator=generator)])


class _Input:
    """Questions and cancellations, read beside the answering."""

    def __init__(self) -> None:
        self.questions: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._cancelled: set[int] = set()
        threading.Thread(target=self._read, name="questions", daemon=True).start()

    def is_cancelled(self, number: int) -> bool:
        return number in self._cancelled

    def _read(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "cancel" in message:
                self._cancelled.add(message["cancel"])
            else:
                self.questions.put(message)
        self.questions.put(None)


def _say(message: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Answer until standard input is closed. Returns the exit code."""
    told = json.loads(sys.stdin.readline())
    ready_libraries()
    import torch

    torch.set_num_threads(1)
    try:
        speaker = Speaker(told["model"], told["device"], told["dtype"])
    except UltraEditError as error:
        _say({"ready": False, "error": str(error)})
        return 1
    _say({"ready": True})
    source = _Input()
    while (asked := source.questions.get()) is not None:
        number = asked["id"]
        try:
            for piece in speaker.answer(asked, lambda number=number: source.is_cancelled(number)):
                _say({"id": number, **piece})
        except UltraEditError as error:
            _say({"id": number, "error": str(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
