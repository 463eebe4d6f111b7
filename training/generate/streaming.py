"""Answer a prompt as a stream of text."""

from __future__ import annotations

import threading
from collections.abc import Collection, Generator, Iterator
from typing import Any, Self

import torch
from transformers import StoppingCriteriaList, TextIteratorStreamer

from training.generate.answers import Answer, find_stops, finished, generation_settings
from training.generate.sampling import Sampling
from training.generate.stops import ReaderLeft, StopTexts, before_stop, cut_at_stop, held_back
from training.generate.token_text import GrowingText


class ContinuingStreamer(TextIteratorStreamer):  # type: ignore[misc]  # transformers is not typed
    """Gives the new text as it continues the prompt (a leading space is kept), and keeps the new ids.

    A character of several tokens comes once it is whole. A stop token, after which nothing comes, has no text.
    """

    def __init__(self, tokenizer: Any, stop_ids: Collection[int] = ()) -> None:
        super().__init__(tokenizer)
        self.stop_ids = stop_ids
        self.new: list[int] = []
        self.text: GrowingText | None = None  # the prompt, which it continues, comes first
        self.told = 0

    def put(self, value: torch.Tensor) -> None:
        ids = value.reshape(-1).tolist()
        if self.text is None:
            self.text = GrowingText(self.tokenizer, ids)
            return
        self.new.extend(ids)
        text = self.text.add(before_stop(ids, self.stop_ids))
        self.tell(text, len(text.rstrip("\ufffd")))

    def end(self) -> None:
        if self.text is not None:
            text = self.text.add([])
            self.tell(text, len(text))
        self.on_finalized_text("", stream_end=True)

    def tell(self, text: str, end: int) -> None:
        if end > self.told:
            self.on_finalized_text(text[self.told : end])
            self.told = end


class AnswerStream(Iterator[str]):
    """The pieces of an answer, whose text they are together; `answer` is the whole once they have ended.

    `close` ends the generation early; `answer` is then what there is.
    """

    def __init__(self, model: Any, tokenizer: Any, ids: list[int], sampling: Sampling) -> None:
        self.model, self.tokenizer, self.ids, self.sampling = model, tokenizer, ids, sampling
        self.settings = generation_settings(model, tokenizer, len(ids), sampling)  # raises here, not in the thread
        self.stops = find_stops(model, tokenizer, sampling)
        self.streamer, self.left = ContinuingStreamer(tokenizer, self.stops.ids), threading.Event()
        self.error: BaseException | None = None
        self.answer: Answer | None = None
        self.pieces = self.read()
        self.thread = threading.Thread(target=self.generate, name="generate", daemon=True)
        self.thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self.pieces)

    def close(self) -> None:
        """End the generation and wait for its last step."""
        self.left.set()
        self.thread.join()
        self.pieces.close()
        self.finish()

    def generate(self) -> None:
        """Generate in a thread of its own; an error is raised where the text is read."""
        try:
            with torch.inference_mode():
                if self.sampling.seed is not None:
                    torch.manual_seed(self.sampling.seed)
                inputs = torch.tensor([self.ids], device=self.model.device)
                criteria: list[Any] = [ReaderLeft(self.left)]
                criteria += [StopTexts(self.tokenizer, self.stops.texts, len(self.ids))] if self.stops.texts else []
                self.model.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    streamer=self.streamer,
                    stopping_criteria=StoppingCriteriaList(criteria),
                    **self.settings,
                )
        except BaseException as error:  # noqa: BLE001  # raised again by `read`
            self.error = error
            self.streamer.end()

    def read(self) -> Generator[str]:
        """Yield text that cannot be the beginning of a stop text."""
        text, told = "", 0
        for piece in self.streamer:
            text += piece
            whole, at_stop = cut_at_stop(text, self.stops.texts)
            end = len(whole) if at_stop else len(text) - held_back(text, self.stops.texts)
            if end > told:
                yield text[told:end]
                told = end
            if at_stop:
                self.left.set()
                break
        else:
            if text[told:]:
                yield text[told:]
        self.thread.join()
        self.finish()
        if self.error is not None:
            raise self.error

    def finish(self) -> None:
        if self.answer is None:
            self.answer = finished(self.tokenizer, self.ids, self.streamer.new, self.stops)


def stream(model: Any, tokenizer: Any, ids: list[int], sampling: Sampling) -> AnswerStream:
    """Continue `ids` as `answer` does, and give the text in pieces as it is generated. Raises DataError."""
    return AnswerStream(model, tokenizer, ids, sampling)
