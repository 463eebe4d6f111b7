"""The paths that answer a prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from cluster.errors import DataError
from training.generate.prompts import conversation_ids, prompt_ids
from training.generate.sampling import Sampling
from training.serve.answering import Answering, Served
from training.serve.bodies import ChatBody, CompletionBody, GenerateBody, OpenAIBody, parsed
from training.serve.openai_shapes import DONE, Shape, sse
from training.serve.refusals import RefusalError

COMPLETION_TOKENS = 16  # of `/v1/completions` without max_tokens, as OpenAI's API says

Value = TypeVar("Value")


async def generate(request: Request) -> Response:
    """Answer a prompt as `shardline generate` does."""
    served = served_by(request)
    body = parsed(GenerateBody, await request.body())
    check_model(served, body.model)
    ids = await encoded("prompt", prompt_ids, served.tokenizer, body.prompt, as_chat=served.as_chat)
    tokens = body.tokens or min(Sampling().tokens, left(served, ids))
    sampling = checked(served, ids, body.sampling(tokens, body.temperature), "tokens")
    answering = Answering(served, ids, sampling, strip=True)
    text = await whole_text(request, answering)
    return JSONResponse(
        {
            "text": text,
            "stopped": answering.reason == "stop",
            "reason": answering.reason,
            "tokens": answering.tokens,
            "prompt_tokens": len(ids),
            "model": served.name,
        }
    )


async def chat_completions(request: Request) -> Response:
    """Answer a conversation, as OpenAI's API does."""
    served = served_by(request)
    body = parsed(ChatBody, await request.body())
    check_model(served, body.model)
    messages = [message.as_template_takes_it() for message in body.messages]
    if messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise RefusalError(400, "messages: the last one must be the user's, and say something", param="messages")
    ids = await encoded("messages", conversation_ids, served.tokenizer, messages)
    tokens = body.max_completion_tokens or body.max_tokens or left(served, ids)
    sampling = checked(served, ids, body.sampling(tokens, body.temperature), "max_tokens")
    return await openai_answer(request, body, Answering(served, ids, sampling, strip=True), is_chat=True)


async def completions(request: Request) -> Response:
    """Continue a text, as OpenAI's API does."""
    served = served_by(request)
    body = parsed(CompletionBody, await request.body())
    check_model(served, body.model)
    ids = await completion_ids(served, body.prompt)
    tokens = body.max_tokens or min(COMPLETION_TOKENS, left(served, ids))
    sampling = checked(served, ids, body.sampling(tokens, body.temperature), "max_tokens")
    return await openai_answer(request, body, Answering(served, ids, sampling, strip=False), is_chat=False)


def served_by(request: Request) -> Served:
    served: Served = request.app.state.served
    return served


def check_model(served: Served, name: str | None) -> None:
    if name is not None and name != served.name:
        message = f"no model {name!r} here; the one that is served is {served.name!r}"
        raise RefusalError(404, message, param="model", code="model_not_found")


async def encoded(param: str, encode: Callable[..., list[int]], *arguments: Any, **options: Any) -> list[int]:
    """Return a prompt's ids, in a thread: a megabyte of text takes a second. Raises RefusalError."""
    try:
        return await asyncio.to_thread(encode, *arguments, **options)
    except DataError as error:
        raise RefusalError(400, str(error), param=param) from None


async def completion_ids(served: Served, prompt: str | list[str] | list[int]) -> list[int]:
    """Return the ids of a completion's prompt, which may be ids itself."""
    first = prompt if isinstance(prompt, str) else prompt[0]
    if isinstance(first, str):
        return await encoded("prompt", prompt_ids, served.tokenizer, first, as_chat=False)
    return [number for number in prompt if isinstance(number, int)]


def left(served: Served, ids: list[int]) -> int:
    """Return how long an answer may be."""
    return max(1, min(served.limits.answer_tokens, served.limits.context_tokens - len(ids)))


def checked(served: Served, ids: list[int], sampling: Sampling, name: str) -> Sampling:
    """Return the settings if the prompt and the answer fit. Raises RefusalError with 400."""
    limits, vocabulary = served.limits, served.model.get_input_embeddings().num_embeddings
    if not ids:
        raise RefusalError(400, "the prompt is empty", param="prompt")
    if not all(0 <= number < vocabulary for number in ids):
        raise RefusalError(400, f"the prompt has a token id that is not in 0 to {vocabulary - 1}", param="prompt")
    if len(ids) >= limits.context_tokens:
        told = f"the prompt has {len(ids):,} tokens; with an answer, {limits.context_tokens:,} is the limit"
        raise RefusalError(400, f"{told}; shorten the prompt", param="prompt", code="context_length_exceeded")
    if sampling.tokens > limits.answer_tokens:
        message = f"{name}: {sampling.tokens:,} is more than this server gives, {limits.answer_tokens:,}"
        raise RefusalError(400, message, param=name)
    if len(ids) + sampling.tokens > limits.context_tokens:
        told = (
            f"{name}: {len(ids):,} of the prompt and {sampling.tokens:,} are more than {limits.context_tokens:,} tokens"
        )
        raise RefusalError(400, f"{told}; ask for fewer", param=name, code="context_length_exceeded")
    return sampling


async def openai_answer(request: Request, body: OpenAIBody, answering: Answering, *, is_chat: bool) -> Response:
    shape = Shape(model=answering.served.name, is_chat=is_chat)
    if not body.stream:
        text = await whole_text(request, answering)
        return JSONResponse(shape.whole(text, answering))
    pieces = answering.pieces()
    # the first piece comes before the status: a request that is refused or fails by then has a status of its own
    first = await unless_left(request, anext(pieces, ""))
    events = streamed(shape, answering, first, pieces, with_usage=body.stream_options.include_usage)
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def streamed(
    shape: Shape, answering: Answering, first: str, pieces: AsyncIterator[str], *, with_usage: bool
) -> AsyncIterator[str]:
    """Yield an answer as server-sent events; however they end, the slot is free then."""
    async with aclosing(pieces):  # type: ignore[type-var]  # an asynchronous generator
        yield shape.opening() + (shape.piece(first) if first else "")
        try:
            async for piece in pieces:
                yield shape.piece(piece)
        except RefusalError as refusal:
            yield sse(refusal.body())
            return
        yield shape.end(answering) + (shape.totals(answering) if with_usage else "") + DONE


async def whole_text(request: Request, answering: Answering) -> str:
    async def collected() -> str:
        async with aclosing(answering.pieces()) as pieces:  # type: ignore[type-var]
            return "".join([piece async for piece in pieces])

    return await unless_left(request, collected())


async def unless_left(request: Request, work: Coroutine[Any, Any, Value]) -> Value:
    """Return what `work` gives; if the client leaves before, end it, which frees its slot."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())  # the body was read: only a disconnection can come
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RefusalError(499, "the client has left")
    finally:
        leaving.cancel()
        working.cancel()
