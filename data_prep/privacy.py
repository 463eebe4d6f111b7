"""Private data in running text: found by cheap signs first, then by exact rules, and replaced by the name of its kind.

The signs (an @, dots between digits, digits or colons close together) are found with numpy over the bytes of a whole
text; regular expressions look only at the few bytes around them, so that text without private data costs little. The
replacement is the same everywhere: a pseudonym made from the data could be undone by trying what the data may be.

Found are: e-mail addresses (RFC 5321 in the form people use), public IP addresses of both versions, IBANs (ISO 13616:
length by country, check digits), payment cards (ISO/IEC 7812: issuer and length, Luhn), telephone numbers (ITU-T E.164
with its plus, and the North American plan with its separators; a bare run of digits could be anything).
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

PRIVACY_VERSION = 1  # part of every slice's digest: raise it when a rule below changes

Kind = Literal["email", "ip", "iban", "card", "phone"]
Span = tuple[int, int]
Places = npt.NDArray[np.intp]
Bytes = npt.NDArray[np.uint8]

KINDS: tuple[Kind, ...] = ("email", "ip", "iban", "card", "phone")
TAGS: Mapping[Kind, bytes] = {kind: f"[{kind.upper()}]".encode() for kind in KINDS}
ZERO = np.uint8(ord("0"))
NOWHERE = np.empty(0, np.intp)
REACH = 128  # bytes around a sign in which what it is a sign of must lie

ATOM = rb"[A-Za-z0-9_+%-]"  # of the signs that RFC 5321 allows too, most are a quote's or a URL's where they stand
EMAIL = re.compile(
    rb"(?<![A-Za-z0-9.@_+%-])" + ATOM + rb"{1,64}(?:\." + ATOM + rb"{1,64}){0,8}"
    rb"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9_@]|-[A-Za-z0-9])"
)
OCTET = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
IP_V4 = re.compile(rb"(?<![0-9A-Za-z.])" + OCTET + rb"(?:\." + OCTET + rb"){3}(?![0-9A-Za-z]|\.[0-9])")
IP_V6 = re.compile(rb"(?<![0-9A-Za-z:.])[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![0-9A-Za-z:]|\.[0-9])")
IP_V6_GLOBAL = ipaddress.ip_network("2000::/3")

IBAN = re.compile(rb"(?<![0-9A-Za-z])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}")
IBAN_CHARS = {  # by country, from the registry of ISO 13616
    country: size
    for size, countries in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
        21: "CH CR HR LI LV", 22: "BG BH DE GB GE IE ME RS", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV", 29: "BR EG PS QA UA",
        30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip

CARD = re.compile(
    rb"(?<![0-9A-Za-z.+])(?<![0-9][ -])[2-6][0-9]{3}"
    rb"(?:[0-9]{8,15}|(?P<gap>[ -])[0-9]{4,6}(?:(?P=gap)[0-9]{2,5}){1,3})(?![0-9A-Za-z]|[ -][0-9])"
)
ISSUED = re.compile(  # Visa, Mastercard, American Express, Diners, JCB, Discover, UnionPay, Maestro
    rb"4[0-9]{12}(?:[0-9]{3}){0,2}|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"
    rb"|3[47][0-9]{13}|3(?:0[0-5]|[689][0-9])[0-9]{11}|35(?:2[89]|[3-8][0-9])[0-9]{12,15}"
    rb"|6(?:011|5[0-9]{2}|4[4-9][0-9])[0-9]{12,15}|62[0-9]{14,17}|(?:5[0678]|6[37])[0-9]{10,17}"
)
PHONE = re.compile(
    rb"(?<![0-9A-Za-z+])(?:\+[1-9][0-9]{0,2}(?:[ .-]?\(?[0-9]{1,5}\)?){2,6}"
    rb"|(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|(?<![0-9][.-])[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4})"
    rb"(?![0-9A-Za-z]|[.-][0-9])"
)


def scrub(text: str, kinds: Iterable[Kind]) -> tuple[str, Counter[Kind]]:
    """Return a text with its private data of these kinds replaced, and how much of each kind there was."""
    raw = text.encode("utf-8", "surrogatepass")
    found = find_private(raw, kinds)
    if not found:
        return text, Counter()
    return replaced(raw, found).decode("utf-8", "surrogatepass"), Counter(kind for _, _, kind in found)


def find_private(text: bytes, kinds: Iterable[Kind]) -> list[tuple[int, int, Kind]]:
    """Return the stretches of UTF-8 `text` that are private data of these kinds, in order, none overlapping."""
    wanted = set(kinds)
    data = np.frombuffer(text, np.uint8)
    digits = np.flatnonzero((data - ZERO) < 10)
    found: list[tuple[int, int, Kind]] = []
    taken = np.zeros(0, np.bool_)
    for signs_in, rules in RULES:
        if wanted.isdisjoint(kind for kind, _ in rules) or not len(signs := signs_in(text, data, digits)):
            continue
        parts = list(stretches(signs, len(text)))
        taken = taken if len(taken) else np.zeros(len(text), np.bool_)
        for kind, spans_in in rules:
            for span in (span for part in parts if kind in wanted for span in spans_in(text, *part)):
                if not taken[slice(*span)].any():
                    taken[slice(*span)] = True
                    found.append((*span, kind))
    return sorted(found)


def replaced(text: bytes, found: Iterable[tuple[int, int, Kind]]) -> bytes:
    """Return `text` with the tag of its kind in place of each stretch."""
    parts: list[bytes] = []
    at = 0
    for begin, end, kind in found:
        parts += [text[at:begin], TAGS[kind]]
        at = end
    return b"".join([*parts, text[at:]])


def stretches(signs: Places, size: int) -> Iterator[Span]:
    """Yield the stretches of a text that lie within REACH of a sign, in order."""
    cuts = np.flatnonzero(np.diff(signs) > 2 * REACH)
    begins = signs[np.concatenate([[0], cuts + 1])] - REACH
    ends = signs[np.concatenate([cuts, [-1]])] + REACH
    yield from zip(np.maximum(begins, 0).tolist(), np.minimum(ends, size).tolist(), strict=True)


def at_signs(text: bytes, data: Bytes, digits: Places) -> Places:
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


def spans_of(pattern: re.Pattern[bytes], is_real: Callable[[bytes], bool]) -> Callable[[bytes, int, int], list[Span]]:
    """Return what finds the matches of a pattern that are real."""

    def find(text: bytes, begin: int, end: int) -> list[Span]:
        return [match.span() for match in pattern.finditer(text, begin, end) if is_real(match.group())]

    return find


def iban_spans(text: bytes, begin: int, end: int) -> list[Span]:
    """Return the spans of IBANs: as many letters and digits as the country's have, whatever follows a space."""
    spans = []
    while match := IBAN.search(text, begin, end):
        size = IBAN_CHARS.get(match.group()[:2].decode(), 0)
        places = [place for place in range(*match.span()) if text[place] != ord(" ")][:size]
        value = bytes(text[place] for place in places)
        begin = match.start() + 4
        if size == 0 or len(value) < size:
            continue
        after = places[-1] + 1
        if int_of(value) % 97 == 1 and not text[after : after + 1].isalnum():
            spans.append((match.start(), after))
            begin = after
    return spans


def int_of(iban: bytes) -> int:
    """Return an IBAN as the number that its check digits make 1 modulo 97."""
    return int("".join(str(int(chr(char), 36)) for char in iban[4:] + iban[:4]))


def is_public_address(value: bytes) -> bool:
    try:
        address = ipaddress.ip_address(value.decode())
    except ValueError:
        return False
    return address.is_global and not address.is_multicast and (address.version == 4 or address in IP_V6_GLOBAL)


def is_card(value: bytes) -> bool:
    """Tell whether digits are of an issuer's and pass Luhn's check (US patent 2,950,048)."""
    number = re.sub(rb"[ -]", b"", value)
    if not ISSUED.fullmatch(number):
        return False
    doubled = [2 * (digit - 48) for digit in number[-2::-2]]
    return (sum(number[-1::-2]) - 48 * len(number[-1::-2]) + sum(n - 9 * (n > 9) for n in doubled)) % 10 == 0


def is_phone(value: bytes) -> bool:
    return 8 <= sum(48 <= char <= 57 for char in value) <= 15


Signs = Callable[[bytes, Bytes, Places], Places]
Spans = Callable[[bytes, int, int], list[Span]]

RULES: tuple[tuple[Signs, tuple[tuple[Kind, Spans], ...]], ...] = (  # an earlier rule takes what a later one would
    (at_signs, (("email", spans_of(EMAIL, lambda value: True)),)),
    (dots_between_digits, (("ip", spans_of(IP_V4, is_public_address)),)),
    (close_colons, (("ip", spans_of(IP_V6, is_public_address)),)),
    (
        close_digits,
        (("iban", iban_spans), ("card", spans_of(CARD, is_card)), ("phone", spans_of(PHONE, is_phone))),
    ),
)
