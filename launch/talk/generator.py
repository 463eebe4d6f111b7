"""Answers of one model, or of the base and the tuned model, to many prompts."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.errors import ConfigError, DataError
from cluster.progress import Progress
from launch.talk.prompts import Prompt

if TYPE_CHECKING:
    from training.generate.answers import Answer
    from training.generate.sampling import Sampling
    from training.generate.streaming import AnswerStream

log = logging.getLogger(__name__)

TUNED, BASE = "tuned", "base"

Answers = Mapping[str, "Answer"]  # by the model's name


@dataclass(frozen=True, kw_only=True)
class Generator:
    """The models that answer, by name; the tuned one is the last. With `as_chat`, prompts are a user's messages."""

    models: Mapping[str, Any]
    tokenizer: Any
    as_chat: bool
    system: str | None
    sampling: Sampling

    def __post_init__(self) -> None:
        """Raise ConfigError if there is a system message for a model that continues plain text."""
        if self.system is not None and not self.as_chat:
            raise ConfigError(
                "--system: the model has learnt no chat template, so it knows no system message; put it into the prompt"
            )

    def ids(self, prompt: Prompt) -> list[int]:
        """Return a prompt's ids. Raises DataError, which names the prompt, if it leaves no room for an answer."""
        from training.generate.answers import room

        ids = prompt.ids(self.tokenizer, as_chat=self.as_chat, system=self.system)
        try:
            room(self.models[TUNED], len(ids))
        except DataError as error:
            raise DataError(f"{prompt.where}: {error}") from None
        return ids

    def tell_if_cut(self, answers: Mapping[str, Answer]) -> None:
        """Tell if answers were cut because the model sees no more tokens; they are named by their prompts."""
        cut = [where for where, a in answers.items() if not a.stopped and a.tokens < self.sampling.tokens]
        if cut:
            more = f" and {len(cut) - 1} more" if len(cut) > 1 else ""
            log.warning("%s%s: the answer was cut, as the model sees no more tokens; shorten the prompt", cut[0], more)

    def streams(self, prompt: Prompt) -> Iterator[tuple[str, AnswerStream]]:
        """Yield each model's name and its answer as a stream."""
        from training.generate.streaming import stream

        ids = self.ids(prompt)
        for name, model in self.models.items():
            answer = stream(model, self.tokenizer, ids, self.sampling)
            yield name, answer
            if answer.answer is not None:
                self.tell_if_cut({prompt.where: answer.answer})

    def answers(
        self, prompts: Sequence[Prompt], size: int, known: Collection[int] = ()
    ) -> Iterator[tuple[int, dict[str, Answer]]]:
        """Yield the place and the answers of each prompt, batch after batch; a batch is left out if all are known."""
        from training.generate.batching import answers as generated
        from training.generate.batching import plan_batches

        ids = [self.ids(prompt) for prompt in prompts]
        plan = plan_batches(self.models[TUNED], self.tokenizer, ids, self.sampling, size)
        left = [batch for batch in plan if not known or not set(batch) <= set(known)]
        tuned: dict[str, Answer] = {}
        with Progress("answers", sum(map(len, left)), "prompts") as progress:
            for batch in left:
                found: dict[int, dict[str, Answer]] = {place: {} for place in batch}
                for name, model in self.models.items():
                    for place, answer in generated(model, self.tokenizer, ids, self.sampling, [batch]):
                        found[place][name] = answer
                tuned |= {prompts[place].where: own[TUNED] for place, own in found.items()}
                yield from found.items()
                progress.advance(len(batch))
        self.tell_if_cut(tuned)


def record(prompt: Prompt, answers: Answers) -> dict[str, Any]:
    """Return a prompt and its answers as a line of the output file."""
    tuned = answers[TUNED]
    values = {**prompt.record, "answer": tuned.text, "stopped": tuned.stopped, "tokens": tuned.tokens}
    if BASE in answers:
        values |= {"base_answer": answers[BASE].text, "base_stopped": answers[BASE].stopped}
    return values
