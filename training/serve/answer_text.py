"""The text of an answer while its tokens come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.generate.stops import cut_at_stop, held_back
from training.generate.token_text import GrowingText


class AnswerText:
    """Turns tokens into text: `add` returns what is sure of it, `rest` what is left at the end.

    Half a character of several tokens and what may be the beginning of a stop text are held back. For an answer in a
    conversation (`strip`), so is white space around it. Together, the pieces are what `shardline generate` gives.
    """

    def __init__(self, tokenizer: Any, ids: Sequence[int], stops: Sequence[str], *, strip: bool) -> None:
        self.text, self.stops, self.strip = GrowingText(tokenizer, ids), stops, strip
        self.told = 0
        self.is_stopped = False

    def add(self, tokens: Sequence[int]) -> str:
        """Take new tokens, and return the text that can be told; `is_stopped` says whether a stop text was met."""
        text, self.is_stopped = cut_at_stop(self.text.add(tokens), self.stops)
        if self.is_stopped:
            return self.tell(text, len(text.rstrip()) if self.strip else len(text))
        sure = len(text.rstrip("\ufffd"))
        sure -= held_back(text[:sure], self.stops)
        return self.tell(text, len(text[:sure].rstrip()) if self.strip else sure)

    def rest(self) -> str:
        """Return the end of the text."""
        if self.is_stopped:
            return ""
        text = self.text.add([])
        return self.tell(text, len(text.rstrip()) if self.strip else len(text))

    def tell(self, text: str, end: int) -> str:
        begin = len(text) - len(text.lstrip()) if self.strip and self.told == 0 else self.told
        if end <= begin:
            return ""
        self.told = end
        return text[begin:end]
