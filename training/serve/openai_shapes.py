"""The JSON that OpenAI's API answers with."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from training.serve.answering import Answering, Served

FINISHES = {"stop": "stop", "length": "length", "time": "length"}  # OpenAI has no word for an answer out of time
DONE = "data: [DONE]\n\n"


def usage(answering: Answering) -> dict[str, int]:
    prompt, answer = len(answering.ids), answering.tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def model_entry(served: Served) -> dict[str, Any]:
    """Return what `/v1/models` says of the model. `chat` and `max_model_len` are not OpenAI's; the second is vLLM's."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "shardline",
        "max_model_len": served.limits.context_tokens,
        "chat": served.as_chat,
    }


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of one answer, whole or in chunks: of a conversation or a completion."""

    model: str
    is_chat: bool
    number: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def base(self, *, is_chunk: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self.is_chat:
            kind = "chat.completion.chunk" if is_chunk else "chat.completion"
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {"id": f"{prefix}-{self.number}", "object": kind, "created": self.created, "model": self.model}

    def whole(self, text: str, answering: Answering) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        return {**self.base(is_chunk=False), "choices": [self.choice(said, answering)], "usage": usage(answering)}

    def opening(self) -> str:
        """Return the first event of a stream, which says who speaks; empty for a completion."""
        return self.event({"delta": {"role": "assistant", "content": ""}}) if self.is_chat else ""

    def piece(self, text: str) -> str:
        return self.event({"delta": {"content": text}} if self.is_chat else {"text": text})

    def end(self, answering: Answering) -> str:
        return self.event({"delta": {}} if self.is_chat else {"text": ""}, answering)

    def totals(self, answering: Answering) -> str:
        return sse({**self.base(is_chunk=True), "choices": [], "usage": usage(answering)})

    def event(self, said: dict[str, Any], answering: Answering | None = None) -> str:
        return sse({**self.base(is_chunk=True), "choices": [self.choice(said, answering)]})

    def choice(self, said: dict[str, Any], answering: Answering | None) -> dict[str, Any]:
        finish = FINISHES[answering.reason] if answering else None
        late = {"stop_reason": "time"} if answering and answering.reason == "time" else {}
        return {"index": 0, **said, "logprobs": None, "finish_reason": finish, **late}


def sse(value: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
