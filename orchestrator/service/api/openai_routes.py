"""The model's own words, in the form of OpenAI's API: ``NAME`` is what is live, ``NAME@7`` a version, ``NAME@base`` the unedited model."""

import json
import re
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from orchestrator.service import versions
from orchestrator.service.api.context import Context, Here, Reader
from orchestrator.service.api.problems import Problem
from orchestrator.service.api.schemas import ChatIn, CompletionIn
from orchestrator.service.speaking import Speaking

router = APIRouter(prefix="/v1", tags=["model"])

_USUAL_TOKENS = 128
_BASE = "base"
_ANSWERS: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}


@router.get("/models", response_model=dict[str, Any], summary="What can be asked")
def list_models(caller: Reader, context: Here) -> dict[str, Any]:
    name = context.config.served_name
    with context.database.reading() as connection:
        rows = [row for row in versions.newest_first(connection, None, 500)[0] if row["has_state"] and row["number"]]
    named = [(name, time.time()), (f"{name}@{_BASE}", 0.0), *((f"{name}@{row['number']}", row["created"]) for row in rows)]
    return {
        "object": "list",
        "data": [{"id": model, "object": "model", "created": int(created), "owned_by": "ultraedit"} for model, created in named],
    }


@router.post("/chat/completions", responses=_ANSWERS, response_model=None, summary="Continue a chat")
async def chat(body: ChatIn, caller: Reader, context: Here) -> Response:
    """For trying out, not for traffic: one question is answered after another."""
    tokens = body.max_completion_tokens or body.max_tokens or _USUAL_TOKENS
    asked = {"messages": [message.plain() for message in body.messages], "max_tokens": tokens}
    return await _answered(context, body, asked, chat=True)


@router.post("/completions", responses=_ANSWERS, response_model=None, summary="Continue a text")
async def complete(body: CompletionIn, caller: Reader, context: Here) -> Response:
    """For trying out, not for traffic: one question is answered after another."""
    return await _answered(context, body, {"prompt": body.prompt, "max_tokens": body.max_tokens or 16}, chat=False)


def speaking_of(context: Context) -> Speaking:
    """Who answers.

    Raises:
        Problem: Nobody does.
    """
    if context.speaking is None:
        raise Problem(501, "chat: is turned off in this service; ask the engine that it publishes to")
    return context.speaking


def state_of(context: Context, model: str) -> str | None:
    """The file of the weights that a model's name means; ``None`` for the unedited model.

    Raises:
        Problem: There is no such model, or its weights are gone.
    """
    name = context.config.served_name
    found = re.fullmatch(rf"{re.escape(name)}(?:@(base|[0-9]{{1,9}}))?", model)
    if found is None:
        raise Problem(404, f"model: there is no such model here; expected {name}, {name}@VERSION or {name}@base")
    with context.database.reading() as connection:
        number = versions.live(connection) if found[1] is None else 0 if found[1] == _BASE else int(found[1])
        row = versions.get(connection, number) if number else None
    if row is None:
        return None
    if not row["has_state"]:
        raise Problem(404, f"model: the weights of version {number} are no longer kept; GET /v1/models lists those that are")
    return str(context.folder.state(number))


async def _answered(context: Context, body: ChatIn | CompletionIn, asked: dict[str, Any], *, chat: bool) -> Response:
    speaking, state = speaking_of(context), await run_in_threadpool(state_of, context, body.model)
    question = {**asked, "state": state, "temperature": body.temperature, "top_p": body.top_p, "seed": body.seed, "stop": body.stops}
    answer = _Answer(body.model, chat=chat)
    pieces = speaking.ask(question)
    if not body.stream:
        return JSONResponse(await answer.whole(pieces))
    first = await anext(pieces)  # so that an error is an answer of its own, and not the middle of one
    with_usage = bool((body.stream_options or {}).get("include_usage"))
    return StreamingResponse(answer.streamed(first, pieces, with_usage=with_usage), media_type="text/event-stream")


class _Answer:
    """An answer in OpenAI's forms.

    Args:
        model: The name that was asked for.
        chat: Whether it is a chat.
    """

    def __init__(self, model: str, *, chat: bool) -> None:
        self._chat = chat
        self._object = "chat.completion" if chat else "text_completion"
        self._head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    async def whole(self, pieces: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
        texts, last = [], dict[str, Any]()
        async for piece in pieces:
            texts.append(piece.get("text", ""))
            last = piece
        content = "".join(texts)
        said = {"message": {"role": "assistant", "content": content}} if self._chat else {"text": content}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": last["done"]}
        return {**self._head, "object": self._object, "choices": [choice], "usage": last["usage"]}

    async def streamed(self, first: dict[str, Any], pieces: AsyncIterator[dict[str, Any]], *, with_usage: bool) -> AsyncIterator[str]:
        if self._chat:
            yield self._event({"role": "assistant", "content": ""}, None)
        piece = first
        while True:
            if "done" in piece:
                yield self._event({} if self._chat else "", piece["done"])
                break
            yield self._event({"content": piece["text"]} if self._chat else piece["text"], None)
            piece = await anext(pieces)
        if with_usage:
            yield f"data: {json.dumps({**self._head, 'object': self._chunk, 'choices': [], 'usage': piece['usage']})}\n\n"
        yield "data: [DONE]\n\n"

    @property
    def _chunk(self) -> str:
        return "chat.completion.chunk" if self._chat else self._object

    def _event(self, said: Any, reason: str | None) -> str:
        choice = {"index": 0, ("delta" if self._chat else "text"): said, "logprobs": None, "finish_reason": reason}
        return f"data: {json.dumps({**self._head, 'object': self._chunk, 'choices': [choice]})}\n\n"
