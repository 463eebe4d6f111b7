"""Private data in running text: found by cheap signs first, then by exact rules, and replaced by the name of its kind.

The signs (an @, dots between digits, digits or colons close together) are found with numpy over the bytes of a whole
text; regular expressions look only at the few bytes around them, so that text without private data costs little. The
replacement is the same everywhere: a pseudonym made from the data could be undone by trying what the data may be.

Found are: e-mail addresses (RFC 5321 in the form people use, with the letters of RFC 6531), public IP addresses of both
versions, IBANs (ISO 13616: length by country, check digits), payment cards (ISO/IEC 7812: issuer and length, Luhn),
telephone numbers (ITU-T E.164 with its plus, and the North American plan with its separators).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_prep.clean.account_numbers import card_spans, iban_spans
from data_prep.clean.internet_addresses import email_spans, ip_v4_spans, ip_v6_spans
from data_prep.clean.telephones import phone_spans

PRIVACY_VERSION = 2  # part of every slice's digest: raise it when a rule changes

Kind = Literal["email", "ip", "iban", "card", "phone"]
Span = tuple[int, int]
Places = npt.NDArray[np.intp]
Bytes = npt.NDArray[np.uint8]

KINDS: tuple[Kind, ...] = ("email", "ip", "iban", "card", "phone")
TAGS: Mapping[Kind, bytes] = {kind: f"[{kind.upper()}]".encode() for kind in KINDS}
ZERO = np.uint8(ord("0"))
NOWHERE = np.empty(0, np.intp)
REACH = 128  # bytes around a sign in which what it is a sign of must lie


def scrub(text: str, kinds: Iterable[Kind]) -> tuple[str, Counter[Kind]]:
    """Return a text with its private data of these kinds replaced, and how much of each kind there was."""
    raw = text.encode("utf-8", "surrogatepass")
    found = find_private(raw, kinds)
    if not found:
        return text, Counter()
    return replaced(raw, found).decode("utf-8", "surrogatepass"), Counter(kind for _, _, kind in found)


def find_private(text: bytes, kinds: Iterable[Kind]) -> list[tuple[int, int, Kind]]:
    """Return the spans of UTF-8 `text` that are private data of these kinds, in order, none overlapping."""
    wanted = set(kinds)
    data = np.frombuffer(text, np.uint8)
    digits = np.flatnonzero((data - ZERO) < 10)
    found: list[tuple[int, int, Kind]] = []
    taken = np.zeros(0, np.bool_)
    for signs_in, rules in RULES:
        if wanted.isdisjoint(kind for kind, _ in rules) or not len(signs := signs_in(text, data, digits)):
            continue
        near = list(spans_near(signs, len(text)))
        taken = taken if len(taken) else np.zeros(len(text), np.bool_)
        for kind, spans_in in rules:
            for span in (span for part in near if kind in wanted for span in spans_in(text, *part)):
                if not taken[slice(*span)].any():
                    taken[slice(*span)] = True
                    found.append((*span, kind))
    return sorted(found)


def replaced(text: bytes, found: Iterable[tuple[int, int, Kind]]) -> bytes:
    """Return `text` with the tag of its kind in place of each span."""
    parts: list[bytes] = []
    at = 0
    for begin, end, kind in found:
        parts += [text[at:begin], TAGS[kind]]
        at = end
    return b"".join([*parts, text[at:]])


def spans_near(signs: Places, size: int) -> Iterator[Span]:
    """Yield the spans of a text that lie within REACH of a sign, in order."""
    # Signs closer than twice REACH share a span, so that no byte is searched twice.
    cuts = np.flatnonzero(np.diff(signs) > 2 * REACH)
    begins = signs[np.concatenate([[0], cuts + 1])] - REACH
    ends = signs[np.concatenate([cuts, [-1]])] + REACH
    yield from zip(np.maximum(begins, 0).tolist(), np.minimum(ends, size).tolist(), strict=True)


def at_signs(text: bytes, data: Bytes, digits: Places) -> Places:
    """Return every @: an address has one."""
    return np.flatnonzero(data == ord("@")) if b"@" in text else NOWHERE


def dots_between_digits(text: bytes, data: Bytes, digits: Places) -> Places:
    """Return the first of three dots between digits that have the room of one address."""
    if len(digits) < 4 or text.count(b".") < 3:
        return NOWHERE
    before = digits[: np.searchsorted(digits, len(data) - 2)]
    dots: Places = before[(data[before + 1] == ord(".")) & ((data[before + 2] - ZERO) < 10)] + 1
    return dots[:-2][dots[2:] - dots[:-2] <= 8]


def close_colons(text: bytes, data: Bytes, digits: Places) -> Places:
    """Return the first of two colons with at most four characters between them."""
    if text.count(b":") < 2:
        return NOWHERE
    colons = np.flatnonzero(data == ord(":"))
    return colons[:-1][np.diff(colons) <= 5]


def close_digits(text: bytes, data: Bytes, digits: Places) -> Places:
    """Return the first of seven digits that lie close together."""
    return digits[:-6][digits[6:] - digits[:-6] <= 18] if len(digits) > 6 else NOWHERE


Signs = Callable[[bytes, Bytes, Places], Places]
Spans = Callable[[bytes, int, int], list[Span]]

RULES: tuple[tuple[Signs, tuple[tuple[Kind, Spans], ...]], ...] = (  # an earlier rule takes what a later one would
    (at_signs, (("email", email_spans),)),
    (dots_between_digits, (("ip", ip_v4_spans),)),
    (close_colons, (("ip", ip_v6_spans),)),
    (close_digits, (("iban", iban_spans), ("card", card_spans), ("phone", phone_spans))),
)
