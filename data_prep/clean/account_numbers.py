"""Numbers of bank accounts and payment cards in UTF-8 text, by their lengths and check digits."""

from __future__ import annotations

import re

Span = tuple[int, int]

GAP = rb"(?:[ .-]|\xc2\xa0|\xe2\x80[\xaf\x91])"  # also a no-break space, narrow or not, and a no-break hyphen

IBAN = re.compile(rb"(?<![0-9A-Za-z])[A-Za-z]{2}[0-9]{2}(?:(?:[ -]|\xc2\xa0|\xe2\x80[\xaf\x91])?[A-Za-z0-9]){11,30}")
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
IBAN_DIGITS = 8  # at least, without the two check digits: a sentence that happens to pass their test has fewer
GROUPED = re.compile(rb"[a-z0-9]+|(?:[a-z0-9]{4}[^a-z0-9]{1,3})+[a-z0-9]{1,4}")

CARD = re.compile(  # in one, also beside others; in groups, not where more groups follow or stand before
    rb"(?<![0-9A-Za-z.+])(?<![0-9][.-])(?:[2-6][0-9]{11,18}(?![0-9A-Za-z]|[.-][0-9])"
    rb"|(?<![0-9] )[2-6][0-9]{3}(?P<gap>" + GAP + rb")[0-9]{4,6}(?:(?P=gap)[0-9]{2,5}){1,3}(?![0-9A-Za-z]|[ .-][0-9]))"
)
ISSUED = re.compile(  # Visa, Mastercard, American Express, Diners, JCB, Discover, UnionPay, Maestro
    rb"4[0-9]{12}(?:[0-9]{3}){0,2}|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"
    rb"|3[47][0-9]{13}|3(?:0[0-5]|[689][0-9])[0-9]{11}|35(?:2[89]|[3-8][0-9])[0-9]{12,15}"
    rb"|6(?:011|5[0-9]{2}|4[4-9][0-9])[0-9]{12,15}|62[0-9]{14,17}|(?:5[0678]|6[37])[0-9]{10,17}"
)


def iban_spans(text: bytes, begin: int, end: int) -> list[Span]:
    """Return the spans of IBANs between `begin` and `end`; what follows one may look like more of it."""
    spans: list[Span] = []
    while match := IBAN.search(text, begin, end):
        size = IBAN_CHARS.get(match.group()[:2].decode().upper(), 0)
        places = [place for place in range(*match.span()) if text[place : place + 1].isalnum()][:size]
        begin = match.start() + 4
        if size == 0 or len(places) < size:
            continue
        after = places[-1] + 1
        if is_iban(text[match.start() : after]) and not text[after : after + 1].isalnum():
            spans.append((match.start(), after))
            begin = after
    return spans


def is_iban(written: bytes) -> bool:
    """Return whether check digits hold, and small letters stand without gaps or in groups of four, as people write."""
    value = bytes(char for char in written if chr(char).isalnum() and char < 128)
    if sum(48 <= char <= 57 for char in value[4:]) < IBAN_DIGITS or int_of(value) % 97 != 1:
        return False
    return value.isupper() or (value.islower() and GROUPED.fullmatch(written) is not None)


def int_of(iban: bytes) -> int:
    """Return an IBAN as the number that its check digits make 1 modulo 97."""
    return int("".join(str(int(chr(char), 36)) for char in iban[4:] + iban[:4]))


def card_spans(text: bytes, begin: int, end: int) -> list[Span]:
    """Return the spans of numbers of payment cards between `begin` and `end`."""
    return [match.span() for match in CARD.finditer(text, begin, end) if is_card(match.group())]


def is_card(value: bytes) -> bool:
    """Return whether digits are of an issuer's and pass Luhn's check (US patent 2,950,048)."""
    number = re.sub(rb"[^0-9]", b"", value)
    if not ISSUED.fullmatch(number):
        return False
    doubled = [2 * (digit - 48) for digit in number[-2::-2]]
    return (sum(number[-1::-2]) - 48 * len(number[-1::-2]) + sum(n - 9 * (n > 9) for n in doubled)) % 10 == 0
