"""Ask on a terminal what the arguments leave open."""

from __future__ import annotations

import sys


def is_asking(*, says_yes: bool) -> bool:
    """Return whether there is somebody to ask."""
    return not says_yes and sys.stdin.isatty() and sys.stdout.isatty()


def ask(question: str, default: str, shown: str | None = None) -> str:
    """Return the answer to a question, or the default for an empty one or the end of the input."""
    try:
        answer = input(f"{question} [{shown or default}]: ").strip()
    except EOFError:
        answer = ""
    return answer or default


def ask_yes(question: str, *, default: bool) -> bool:
    """Return the answer to a question of yes or no; asks again until it is one of them."""
    while True:
        answer = ask(question, "y" if default else "n", "Y/n" if default else "y/N").lower()
        if answer in ("y", "yes", "n", "no"):
            return answer[0] == "y"
        sys.stdout.write("please answer y or n\n")
