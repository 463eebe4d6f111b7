"""The options that say how answers are chosen; each error names its option."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from cluster.errors import ConfigError
from launch.arguments import not_negative, positive

if TYPE_CHECKING:
    from training.generate.sampling import Sampling

DRAWING = ("top_p", "top_k")


def add_sampling(command: argparse.ArgumentParser, *, tokens: int) -> None:
    """Add the sampling options; `tokens` is the default length of the longest answer."""
    add = command.add_argument_group("sampling").add_argument
    add("--tokens", type=positive, default=tokens, metavar="N", help="of the longest answer (default: %(default)s)")
    add("--temperature", type=not_negative, default=0.0, metavar="T", help="0 takes the likeliest token (default)")
    add("--top-p", type=probability, metavar="P", help="draw from the likeliest tokens of this total probability")
    add("--top-k", type=positive, metavar="K", help="draw from the K likeliest tokens")
    add("--repetition-penalty", type=factor, default=1.0, metavar="R", help="above 1: repeat less (default: 1)")
    add("--stop", action="append", default=[], type=stop_text, metavar="TEXT", help="ends an answer; repeatable")
    add("--seed", type=seed, metavar="N", help="the same answers each time, at a temperature above 0")


def sampling_of(options: argparse.Namespace) -> Sampling:
    """Return what the options say. Raises ConfigError if one of them would have no effect."""
    from training.generate.sampling import Sampling

    given = {name: getattr(options, name) for name in (*DRAWING, "seed") if getattr(options, name) is not None}
    if options.temperature == 0 and given:
        name = next(iter(given)).replace("_", "-")
        raise ConfigError(
            f"--{name}: has no effect at temperature 0, which takes the likeliest token each time; add --temperature,"
            " for example --temperature 0.7"
        )
    return Sampling(
        tokens=options.tokens,
        temperature=options.temperature,
        repetition_penalty=options.repetition_penalty,
        stop=options.stop,
        **given,
    )


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def probability(text: str) -> float:
    """Parse a number above 0 and up to 1; argparse puts the option before the error."""
    if not 0 < number(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1")
    return float(text)


def factor(text: str) -> float:
    """Parse a finite number above 0."""
    if not 0 < number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return float(text)


def seed(text: str) -> int:
    """Parse a random seed."""
    if not (text.isascii() and text.isdecimal()) or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**63 - 1")
    return int(text)


def stop_text(text: str) -> str:
    r"""Parse a stop text; `\n` and `\t` in it are a new line and a tab, as a shell hardly passes these."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give the text at which an answer ends")
    return text.replace("\\n", "\n").replace("\\t", "\t")
