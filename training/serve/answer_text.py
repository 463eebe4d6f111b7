"""The text of an answer while its tokens come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.generate.stops import cut_at_stop, decoded, held_back

SETTLED_TOKENS = 32  # decoded again with each new token, at most


class AnswerText:
    """Turns tokens into text: `add` returns what is sure of it, `rest` what is left at the end.

    Half a character of several tokens and what may be the beginning of a stop text are held back. For an answer in a
    conversation (`strip`), so is white space around it. Together, the pieces are what `shardline generate` gives.
    """

    def __init__(self, tokenizer: Any, ids: Sequence[int], stops: Sequence[str], *, strip: bool) -> None:
        self.tokenizer, self.before, self.stops, self.strip = tokenizer, list(ids[-1:]), stops, strip
        self.new: list[int] = []
        self.settled = ""
        self.told = 0
        self.is_stopped = False

    def add(self, tokens: Sequence[int]) -> str:
        """Take new tokens, and return the text that can be told; `is_stopped` says whether a stop text was met."""
        self.new.extend(tokens)
        text, self.is_stopped = cut_at_stop(self.text(), self.stops)
        if self.is_stopped:
            return self.tell(text, len(text.rstrip()) if self.strip else len(text))
        sure = len(text.rstrip("\ufffd"))
        sure -= held_back(text[:sure], self.stops)
        return self.tell(text, len(text[:sure].rstrip()) if self.strip else sure)

    def rest(self) -> str:
        """Return the end of the text."""
        if self.is_stopped:
            return ""
        text = self.text()
        return self.tell(text, len(text.rstrip()) if self.strip else len(text))

    def text(self) -> str:
        """Return the whole text, whose beginning is decoded once only."""
        new = decoded(self.tokenizer, self.before, self.new)
        if len(self.new) < SETTLED_TOKENS or new.endswith("\ufffd") or not self.tokenizer.decode(self.new[-1:]).strip():
            return self.settled + new
        self.settled += new
        self.before, self.new = self.new[-1:], []
        return self.settled

    def tell(self, text: str, end: int) -> str:
        begin = len(text) - len(text.lstrip()) if self.strip and self.told == 0 else self.told
        if end <= begin:
            return ""
        self.told = end
        return text[begin:end]
