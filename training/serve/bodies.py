"""The JSON bodies that are taken, and how they become the settings of an answer.

Options of OpenAI's API that this server does not have are refused by name, unless their value asks for nothing: a
client that asked for four answers or for logprobs must not get one answer without them and believe that this is all.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.generate.sampling import Sampling
from training.serve.refusals import RefusalError

ASKS_FOR_NOTHING: dict[str, tuple[Any, ...]] = {  # options that are not here, and the values that change no answer
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),  # 0 asks for those of the chosen tokens
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
Text = Annotated[str, Field(min_length=1)]
Stops = Text | Annotated[list[Text], Field(max_length=16)] | None


class Body(BaseModel):
    """What all bodies have."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = None
    stop: Stops = None
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1)  # -1 is vLLM's word for all
    repetition_penalty: float = Field(default=1.0, gt=0)

    def sampling(self, tokens: int, temperature: float) -> Sampling:
        """Return how the answer's tokens are chosen."""
        return Sampling(
            tokens=tokens,
            temperature=temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            repetition_penalty=self.repetition_penalty,
            stop=[self.stop] if isinstance(self.stop, str) else self.stop or [],
            seed=self.seed,
        )


class StreamOptions(BaseModel):
    """`stream_options` of OpenAI's API."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class OpenAIBody(Body):
    """What both of OpenAI's bodies have. `temperature` is 1 unless it is set, as it is there."""

    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float = Field(default=1.0, ge=0, le=2)
    max_tokens: int | None = Field(default=None, gt=0)
    user: str | None = None


class CompletionBody(OpenAIBody):
    """The body of `/v1/completions`: a text or its token ids, which the model continues."""

    prompt: str | Annotated[list[Text], Field(min_length=1, max_length=1)] | Annotated[list[int], Field(min_length=1)]


class TextPart(BaseModel):
    """A part of a message's content; there are none but texts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def as_template_takes_it(self) -> dict[str, str]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatBody(OpenAIBody):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = Field(default=None, gt=0)


class GenerateBody(Body):
    """The body of `/generate`: a prompt, and any of the options of `shardline generate`, with the same defaults."""

    prompt: Text
    tokens: int | None = Field(default=None, gt=0)
    temperature: float = Field(default=Sampling().temperature, ge=0)


AnyBody = TypeVar("AnyBody", bound=Body)


def parsed(kind: type[AnyBody], raw: bytes) -> AnyBody:
    """Return the body of a request. Raises RefusalError with 400 that names what is wrong."""
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RefusalError(400, f"the body is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise RefusalError(400, f"the body is not a JSON object but {type(values).__name__}")
    values = {name: value for name, value in values.items() if value is not None}
    for name, harmless in ASKS_FOR_NOTHING.items():
        if name in values and not is_one_of(values.pop(name), harmless):
            raise RefusalError(400, f"{name}: this server does not have it; remove it", param=name, code="unsupported")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise refusal_of(error) from None


def is_one_of(value: Any, harmless: tuple[Any, ...]) -> bool:
    """Return whether a value is among these; to Python alone, true is 1 and false 0."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in harmless)


def refusal_of(error: ValidationError) -> RefusalError:
    """Return the problems as one refusal; those of a field that may have several types are told together."""
    told: dict[str, list[str]] = {}
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in problem["loc"] if not str(part).endswith(("]", "str")))
        is_unknown = problem["type"] == "extra_forbidden"
        message = "not an option of this server; remove it" if is_unknown else problem["msg"]
        told.setdefault(where, []).append(message)
    lines = [f"{where}: {', or: '.join(dict.fromkeys(messages))}" for where, messages in told.items()]
    return RefusalError(400, "; ".join(lines), param=next(iter(told)).split(".")[0])
