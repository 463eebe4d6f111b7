"""Telephone numbers in UTF-8 text: international ones with their plus, North American ones with their separators.

A bare run of digits could be anything and is none.
"""

from __future__ import annotations

import re

Span = tuple[int, int]

GAP = rb"(?:[ ./-]|\xc2\xa0|\xe2\x80[\xaf\x91\x93])"  # also no-break spaces, a no-break hyphen and a dash
AREA = rb"[2-9][0-8][0-9]"
BETWEEN = rb"(?:\)?" + GAP + rb"{1,2}\(?|[()])"
INTERNATIONAL = re.compile(
    rb"(?<![0-9A-Za-z+])\+[1-9][0-9]{0,14}(?:" + BETWEEN + rb"[0-9]{1,14}){0,7}(?![0-9A-Za-z]|[.-][0-9])"
)
LAST_GROUP = re.compile(rb"[ /][^0-9]*[0-9]+\Z")  # what may be another number already
NORTH_AMERICAN = re.compile(
    rb"(?<![0-9A-Za-z+])(?<![0-9][.-])(?:1[ .-]?(?=\()|1[ .-])?"
    rb"(?:\(" + AREA + rb"\)[ .-]?|" + AREA + rb"[ .-])[2-9][0-9]{2}[ .-][0-9]{4}(?![0-9A-Za-z]|[.-][0-9])"
)
LONE = re.compile(rb"[0-9] \Z")  # a number before one that is written with spaces: they are a table's row

# How many digits follow a country's code (ITU-T E.164 and the national plans it lists): code: least, most.
PLANS: dict[str, tuple[int, int]] = {
    code: (int(least), int(most))
    for least, most, codes in (
        (4, 5, "290"), (4, 6, "247"), (4, 7, "683 690"), (5, 5, "500 682"), (5, 6, "688"), (5, 7, "676 677 678 685"),
        (5, 8, "686"), (5, 10, "263"), (5, 12, "358"), (6, 6, "298 299 508 672 681 687"), (6, 7, "597"), (6, 8, "53"),
        (6, 9, "252 355 359 376 595"), (6, 10, "95 378"), (6, 11, "39 352"), (6, 13, "43 49"),
        (7, 7, "220 238 239 246 248 269 291 297 501 592 673 674 679 680 691 692 960"),
        (7, 8, "230 241 267 372 507 598 599 670 675 961 975"), (7, 9, "231 243 245 265 353 354 423 967"),
        (7, 10, "46 57 234 254"), (7, 12, "381 882"),
        (8, 8, "45 47 65 216 222 223 226 227 228 232 235 236 253 257 266 350 356 357 370 371 373 374 386 389 502 503"),
        (8, 8, "504 505 506 509 591 689 800 808 852 853 965 968 973 974 976 993"),
        (8, 9, "32 36 51 66 213 218 224 237 250 258 268 377 382 383 385 387 593 855 886 962 963 966 970 971 972"),
        (8, 10, "20 60 63 64 82 225 229 264 850 856 880 964 977"), (8, 12, "62"),
        (9, 9, "27 31 33 34 40 41 48 56 61 93 94 211 212 221 233 240 242 244 249 251 255 256 260 261 262 351 375 380"),
        (9, 9, "420 421 590 594 596 870 881 979 992 994 995 996 998"), (9, 10, "44 81 84 92"), (9, 12, "883"),
        (10, 10, "1 7 30 52 58 90 91 98 878"), (10, 11, "54 55"), (10, 12, "86"),
    )
    for code in codes.split()
}  # fmt: skip


def phone_spans(text: bytes, begin: int, end: int) -> list[Span]:
    """Return the spans of telephone numbers between `begin` and `end`."""
    spans = []
    plus = text.find(b"+", begin, end)  # most texts have none, and a search for one byte costs next to nothing
    for match in INTERNATIONAL.finditer(text, plus, end) if plus >= 0 else ():
        written = match.group()
        while not is_international(written) and (last := LAST_GROUP.search(written)):
            written = written[: last.start()]
        if is_international(written):
            spans.append((match.start(), match.start() + len(written)))
    return spans + [m.span() for m in NORTH_AMERICAN.finditer(text, begin, end) if is_north_american(text, *m.span())]


def is_international(written: bytes) -> bool:
    """Return whether digits are a country's code and as many more as its plan has.

    Powers of two, which programs write with a plus, are none; a trunk prefix in brackets does not count.
    """
    digits = re.sub(rb"[^0-9]", b"", written.replace(b"(0)", b"")).decode()
    if written.count(b"(") != written.count(b")") or is_near_power_of_two(int(digits)):
        return False
    code = next((digits[:size] for size in (1, 2, 3) if digits[:size] in PLANS), None)
    if code is None:
        return False
    least, most = PLANS[code]
    national = digits[len(code) :]
    return least <= len(national) <= most and (code != "1" or (is_area(national[:3]) and national[3] >= "2"))


def is_near_power_of_two(number: int) -> bool:
    """Return whether a number is a power of two or one less."""
    return number & (number - 1) == 0 or number & (number + 1) == 0


def is_area(digits: str) -> bool:
    """Return whether digits can be an area code of the North American plan: 211 to 911 are services, 200 is none."""
    return digits[0] >= "2" and digits[1] != "9" and digits[1:] != "11" and (digits[1:] != "00" or digits[0] in "5789")


def is_north_american(text: bytes, begin: int, end: int) -> bool:
    """Return whether digits in that plan's form are one of its numbers, and no row of a table."""
    digits = re.sub(rb"[^0-9]", b"", text[begin:end]).decode()[-10:]
    if not is_area(digits[:3]) or digits[4:6] == "11":
        return False
    in_row = LONE.search(text[max(0, begin - 2) : begin]) or re.match(rb" [0-9]", text[end : end + 2])
    return not (in_row and b"-" not in text[begin:end] and b"(" not in text[begin:end])
