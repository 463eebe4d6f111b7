"""The prompts that a command is given: on its command line, in a file, on standard input."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError, DataError
from cluster.wording import count_of

log = logging.getLogger(__name__)

FORMS = 'each line is {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text or a conversation to answer. `where` is the place it was read from, for messages about it."""

    where: str
    text: str = ""
    messages: tuple[dict[str, str], ...] = ()

    @property
    def record(self) -> dict[str, Any]:
        """The prompt as a line of a .jsonl file has it."""
        return {"messages": list(self.messages)} if self.messages else {"prompt": self.text}

    @property
    def shown(self) -> str:
        """What the user said last."""
        return self.messages[-1]["content"] if self.messages else self.text

    def ids(self, tokenizer: Any, *, as_chat: bool, system: str | None) -> list[int]:
        """Return the ids to continue. Raises DataError, which tells the place of the prompt."""
        from training.generate.prompts import conversation_ids, prompt_ids

        try:
            if as_chat:
                return conversation_ids(tokenizer, self.conversation(system))
            if self.messages:
                raise DataError("the model has learnt no chat template: give a prompt, a text")
            return prompt_ids(tokenizer, self.text, as_chat=False)
        except DataError as error:
            raise DataError(f"{self.where}: {error}") from None

    def conversation(self, system: str | None) -> list[dict[str, str]]:
        messages = list(self.messages) or [{"role": "user", "content": self.text}]
        if system is None:
            return messages
        if messages[0]["role"] == "system":
            raise DataError("the conversation has a system message of its own; remove it, or --system")
        return [{"role": "system", "content": system}, *messages]


def checked(text: str, where: str) -> str:
    """Return a prompt's text. Raises DataError if it is empty or no valid text."""
    if not text.strip():
        raise DataError(f"{where}: empty; give the text that the model is to answer or continue")
    try:
        text.encode()
    except UnicodeEncodeError:  # what Python makes of bytes that are not UTF-8
        raise DataError(f"{where}: not valid UTF-8: {ascii(text)[:60]}") from None
    return text


def typed_prompts(texts: Sequence[str]) -> list[Prompt]:
    """Return the prompts of the command line."""
    places = ["--prompt"] if len(texts) == 1 else [f"--prompt {number}" for number in range(1, len(texts) + 1)]
    return [Prompt(where=place, text=checked(text, place)) for place, text in zip(places, texts, strict=True)]


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a .txt or .jsonl file, one a line; empty lines are skipped, and told. Raises DataError."""
    if path.suffix not in (".txt", ".jsonl"):
        raise ConfigError(f"--input {path}: expected a .txt file with one prompt a line, or a .jsonl file: {FORMS}")
    read = from_json if path.suffix == ".jsonl" else from_text
    prompts, empty = [], 0
    for number, line in enumerate(lines_of(path), start=1):
        if line.strip():
            prompts.append(read(line, f"{path}:{number}"))
        else:
            empty += 1
    if empty:
        log.info("%s: %s skipped", path, count_of(empty, "empty line"))
    if not prompts:
        raise DataError(f"{path}: no prompts; write one a line")
    return prompts


def lines_of(path: Path) -> list[str]:
    """Return a file's lines. Raises DataError that tells the line which is not UTF-8."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not valid UTF-8; save the file as UTF-8") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def from_text(line: str, where: str) -> Prompt:
    return Prompt(where=where, text=line)


def from_json(line: str, where: str) -> Prompt:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: no JSON ({error}); {FORMS}") from None
    match values:
        case {"messages": [_, *_] as messages} if "prompt" not in values:
            return Prompt(where=where, messages=tuple(message_of(message, where) for message in messages))
        case {"prompt": str(text)} if "messages" not in values:
            return Prompt(where=where, text=checked(text, where))
    raise DataError(f"{where}: no prompt; {FORMS}")


def message_of(message: Any, where: str) -> dict[str, str]:
    match message:
        case {"role": "system" | "user" | "assistant" as role, "content": str(content)}:
            return {"role": role, "content": checked(content, where)}
    raise DataError(f"{where}: {str(message)[:60]!r} is no message of a system, user or assistant; {FORMS}")


def piped_prompts(stream: Iterable[str]) -> Iterator[Prompt]:
    """Yield each line of standard input as it comes; empty lines are skipped, and told at the end."""
    number, empty = 0, 0
    lines = iter(stream)
    while True:
        try:
            line = next(lines).rstrip("\r\n")
        except StopIteration:
            break
        except UnicodeDecodeError:
            raise DataError(f"standard input, after line {number}: not valid UTF-8") from None
        number += 1
        if line.strip():
            yield Prompt(where=f"line {number}", text=checked(line, f"standard input, line {number}"))
        else:
            empty += 1
    if empty:
        log.info("standard input: %s skipped", count_of(empty, "empty line"))
