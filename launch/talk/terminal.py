"""The terminal: colours where they are wanted, text that cannot command it, lines that can be edited."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TextIO

from cluster.environment import wants_colours

DIM, BOLD, CYAN = "2", "1", "36"
BLOCK = '"""'
# what a model says is shown, never obeyed: no escape sequences, no return to the beginning of a line
CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


class Screen:
    """Writes to standard output; styles only on a terminal, unless NO_COLOR is set."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.is_terminal = self.stream.isatty()
        self.has_styles = self.is_terminal and wants_colours()

    def styled(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self.has_styles else text

    def write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()

    def say(self, text: str, style: str = "") -> None:
        """Write a line."""
        self.write((self.styled(text, style) if style else text) + "\n")

    def notice(self, text: str) -> None:
        """Tell something that no model has said; on standard error where the output is for a program."""
        if self.is_terminal:
            self.say(f"({text})", DIM)
        else:
            sys.stderr.write(f"({text})\n")

    def shown(self, text: str) -> str:
        """Return what a model or a user said, without control characters if it goes to a terminal."""
        return text.translate(CONTROLS) if self.is_terminal else text

    def answer(self, pieces: Iterable[str]) -> None:
        """Write an answer as it comes, without white space at its beginning and its end."""
        waiting, began = "", False
        for piece in pieces:
            text = waiting + piece if began else (waiting + piece).lstrip()
            waiting = text[len(text.rstrip()) :]
            if text.rstrip():
                began = True
                self.write(self.shown(text.rstrip()))

    def question(self, name: str) -> str:
        """Return the prompt for a line of input; the editor does not count its style as columns."""
        text = f"{name}> "
        return f"\001\x1b[{CYAN}m\002{text}\001\x1b[0m\002" if self.has_styles else text


def read_text(question: str, read: Callable[[str], str] = input) -> str:
    r'''Read a text from the terminal: a line, lines that end with a backslash, or all between `"""` and `"""`.

    Raises EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C.
    '''
    line = read(question)
    if line.strip().startswith(BLOCK):
        lines = [line.strip().removeprefix(BLOCK)]
        while not lines[-1].rstrip().endswith(BLOCK) or (len(lines) == 1 and not lines[0]):
            lines.append(read("... "))
        lines[-1] = lines[-1].rstrip().removesuffix(BLOCK)
        return "\n".join(lines).strip("\n")
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(read("... "))
    return "\n".join(lines)
