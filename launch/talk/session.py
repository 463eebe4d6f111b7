"""A chat: what is said to the model, what it answers, and what the conversation has become."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cluster.errors import DataError
from cluster.wording import count_of
from launch.talk.conversation import Conversation
from launch.talk.generator import TUNED, Generator
from launch.talk.terminal import BOLD, DIM, Screen

if TYPE_CHECKING:
    from training.generate.answers import Answer
    from training.generate.sampling import Sampling

RETRY_TEMPERATURE = 0.8  # of another answer, where the likeliest one would only come again
LEAST_ROOM = 4  # a quarter of what the model sees is kept for the answer, unless `tokens` is less


class Session:
    """A conversation with the models of a generator.

    A model without a chat template continues text: each text begins anew, and an empty one continues the last.
    """

    def __init__(self, generator: Generator, name: str, screen: Screen) -> None:
        self.generator, self.name, self.screen = generator, name, screen
        self.conversation = Conversation(system=generator.system, is_text=not generator.as_chat)
        self.count = 0

    @property
    def as_chat(self) -> bool:
        return self.generator.as_chat

    def say(self, said: str, *, retry: bool = False) -> None:
        """Show the answers to a message, and add it with the tuned model's answer. Raises DataError."""
        ids = self.ids(said)
        sampling = self.sampling(retry=retry)
        answer: Answer | None = None
        for name, model in self.generator.models.items():
            if len(self.generator.models) > 1:
                self.screen.write(self.screen.styled(f"{name}: ", BOLD))
            answer, was_stopped = self.streamed(model, ids, sampling)
            if was_stopped and name != TUNED:
                return
        self.count += 1
        if answer is not None and answer.text:
            self.conversation.turns.append((said, answer.text if self.as_chat else answer.raw))
        else:
            self.notice("no answer; the message is not kept in the conversation")

    def go_on(self) -> None:
        """Continue the last text further. Raises DataError."""
        begin, rest = self.conversation.turns[-1]
        self.say(begin + rest)
        longer = self.conversation.turns[-1]
        if len(longer[0]) > len(begin):
            self.conversation.turns[-2:] = [(begin, rest + longer[1])]

    def streamed(self, model: Any, ids: list[int], sampling: Sampling) -> tuple[Answer | None, bool]:
        """Show an answer as it is generated; return it, and whether Ctrl-C ended it."""
        from training.generate.streaming import stream

        began, was_stopped = time.monotonic(), False
        pieces = stream(model, self.generator.tokenizer, ids, sampling)
        try:
            self.screen.answer(pieces)
        except KeyboardInterrupt:
            was_stopped = True
        finally:
            pieces.close()
        self.screen.say("")
        answer = pieces.answer
        if answer is not None and self.screen.is_terminal:
            self.screen.say(told(answer, time.monotonic() - began, sampling, was_stopped=was_stopped), DIM)
        return answer, was_stopped

    def ids(self, said: str) -> list[int]:
        """Return what the model continues; what it no longer sees of the conversation is told. Raises DataError."""
        from training.generate.answers import positions, room
        from training.generate.prompts import conversation_ids, prompt_ids

        model, tokenizer = self.generator.models[TUNED], self.generator.tokenizer
        longest = positions(model)
        limit = longest and longest - min(self.generator.sampling.tokens, longest // LEAST_ROOM)
        if self.as_chat:
            ids, left_out = self.conversation.fitting(said, lambda found: conversation_ids(tokenizer, found), limit)
            if left_out:
                turns = "turn is" if left_out == 1 else f"{left_out} turns are"
                self.notice(f"longer than the {longest} tokens that the model sees: the oldest {turns} left out now")
        else:
            ids = prompt_ids(tokenizer, said, as_chat=False)
            if limit and len(ids) > limit:
                self.notice(f"longer than the {longest} tokens that the model sees: it continues the last {limit}")
                ids = ids[-limit:]
        room(model, len(ids))
        return ids

    def sampling(self, *, retry: bool) -> Sampling:
        """Return how the next answer is chosen: with a seed, each has one of its own."""
        sampling = self.generator.sampling
        if retry and not sampling.draws:
            self.notice(f"drawn at temperature {RETRY_TEMPERATURE}, as the likeliest answer would be the same")
            return sampling.model_copy(update={"temperature": RETRY_TEMPERATURE})
        if sampling.seed is not None:
            return sampling.model_copy(update={"seed": (sampling.seed + self.count) % 2**63})
        return sampling

    def retry(self) -> None:
        """Answer the last message again; without a new answer, the old one stays. Raises DataError."""
        turns = list(self.conversation.turns)
        said = self.conversation.undo()
        if said is None:
            raise DataError("nothing to answer again yet")
        try:
            self.say(said, retry=True)
        finally:
            if len(self.conversation.turns) < len(turns):
                self.conversation.turns = turns

    def notice(self, text: str) -> None:
        """Tell something that the model has not said."""
        self.screen.notice(text)


def told(answer: Answer, seconds: float, sampling: Sampling, *, was_stopped: bool) -> str:
    """Return the line under an answer."""
    speed = f"{count_of(answer.tokens, 'token')}, {answer.tokens / max(seconds, 1e-9):.1f}/s"
    if was_stopped:
        return f"{speed}, stopped"
    if answer.stopped:
        return speed
    reason = f"--tokens is {sampling.tokens}" if answer.tokens >= sampling.tokens else "the model sees no more"
    return f"{speed}, cut: {reason}"
