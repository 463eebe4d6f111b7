from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.clean import privacy
from data_prep.clean.privacy import KINDS, RULES, Kind, find_private, scrub
from tests.data_prep.planted import NOTHING, PLANTED

PAGE = Path(__file__).resolve().parents[3] / "docs" / "cleaning.md"


def unguarded(text: bytes) -> Counter[str]:
    """Count what the rules find when they look at all of a text, an earlier rule first."""
    taken = [False] * len(text)
    found: Counter[str] = Counter()
    for kind, spans_in in (rule for _, rules in RULES for rule in rules):
        for begin, end in spans_in(text, 0, len(text)):
            if not any(taken[begin:end]):
                taken[begin:end] = [True] * (end - begin)
                found[kind] += 1
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to a.b+c@mail.example.co.uk.", "Write to [EMAIL]."),
        ("lists/python-dev@python.org/x, 'me@x.org'", "lists/[EMAIL]/x, '[EMAIL]'"),
        ("8.8.8.8, 2001:4860:4860::8888", "[IP], [IP]"),
        ("+44 20 7946 0958 or (212) 555-0187 or 212-555-0187", "[PHONE] or [PHONE] or [PHONE]"),
        ("4111 1111 1111 1111, 3782-822463-10005, 5555555555554444", "[CARD], [CARD], [CARD]"),
        ("1-800-555-0199, 4111.1111.1111.1111", "[PHONE], [CARD]"),
        ("gb29nwbk60161331926819 de89-3704-0044-0532-0130-00", "[IBAN] [IBAN]"),
        (
            "FR14\u00a02004\u00a01010\u00a00505\u00a00001\u00a03M02\u00a0606, 4111\u00a01111\u00a01111\u00a01111",
            "[IBAN], [CARD]",
        ),
        ("info@m\u00fcller.de, m\u00fcller@example.com, o'neil@example.com", "[EMAIL], [EMAIL], [EMAIL]"),
        ("GB29 NWBK 6016 1331 9268 19 AND DE89370400440532013000", "[IBAN] AND [IBAN]"),
        ("ünï +1 212 555 0187 çøde", "ünï [PHONE] çøde"),
    ],
)
def test_private_data_is_replaced_by_its_kind(text: str, expected: str) -> None:
    assert scrub(text, KINDS)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        "a@b, @home, user@localhost",
        "10.0.0.1, 192.168.1.1, 127.0.0.1, 1.2.3.4.5, 300.1.1.1, ::1, fe80::1, 2001:db8::1",
        "std::vector, a::b, at 12:30:00",
        "4111 1111 1111 1112, 1234567890123456, 1999 2000 2001 2002 2003",
        "GB29 NWBK 6016 1331 9268 18, XX29 6016 1331 9268 19",
        "+4294967296, +17179869184, -2147483648, +281474976710656",
        "version 1.2.3.4, v1.2.3.4, release: 1.2.3.4, the 1.2.3.4 build, thing-1.2.3.4.tar.gz",
        "1914-1918, 2026-11-20, 1,234,567.89, page 123-4567, ISBN 978-3-16-148410-0, 3.14159265358979",
    ],
)
def test_what_only_looks_like_private_data_stays(text: str) -> None:
    assert scrub(text, KINDS) == (text, Counter())


def test_only_the_wanted_kinds_are_replaced() -> None:
    assert scrub("a@b.org 8.8.8.8", ["ip"]) == ("a@b.org [IP]", Counter(ip=1))


@given(st.text())
def test_any_text_can_be_scrubbed_and_scrubbing_twice_changes_nothing_more(text: str) -> None:
    once, _ = scrub(f"a@b.org {text} +1 212 555 0187", KINDS)
    assert scrub(once, KINDS) == (once, Counter())


@given(
    st.lists(st.sampled_from(["a@b.org", "8.8.8.8", "+442079460958", "words " * 60, "4111111111111111", " ", ": :"]))
)
def test_the_signs_miss_nothing_that_the_rules_would_find(pieces: list[str]) -> None:
    text = " ".join(pieces).encode()

    assert Counter(kind for _, _, kind in find_private(text, KINDS)) == unguarded(text)


def test_the_signs_miss_nothing_in_real_specifications(test_data: Path) -> None:
    found: Counter[str] = Counter()
    for path in sorted((test_data / "peps").iterdir()):
        text = path.read_bytes()
        counts = Counter(kind for _, _, kind in find_private(text, privacy.KINDS))
        assert counts == unguarded(text), path
        found += counts

    # datatrove's pattern finds 8 e-mails more, of which none is one: libssl3@3.2.0, medium.com/@name, ssh://git@host
    assert found == {"email": 376, "ip": 2}  # the latter are version numbers in a table, which look the same


def unmarked(line: str, kind: Kind | None) -> tuple[bytes, set[tuple[int, int, Kind]]]:
    """Return a planted line without its marks, and what stands between them."""
    plain = b""
    spans: set[tuple[int, int, Kind]] = set()
    for part in re.split("«(.*?)»", line):
        end = len(plain) + len(part.encode())
        if kind is not None and f"«{part}»" in line:
            spans.add((len(plain), end, kind))
        plain += part.encode()
    return plain, spans


def test_the_page_about_cleaning_tells_how_much_planted_private_data_is_found_and_how_much_of_it_is_some() -> None:
    planted, hits, found = Counter[str](), Counter[str](), Counter[str]()
    lines: list[tuple[Any, str]] = [(kind, line) for kind, text in PLANTED.items() for line in text.strip().split("\n")]
    for kind, line in [*lines, *((None, line) for line in NOTHING.strip().split("\n"))]:
        text, expected = unmarked(line, kind)
        spans = find_private(text, KINDS)
        planted.update(kind for _, _, kind in expected)
        hits.update(kind for _, _, kind in expected.intersection(spans))
        found.update(kind for _, _, kind in spans)

    told = re.findall(r"^\| [^|]+`(\w+)` \|[^|]+\| (\d+) of (\d+) \| (\d+) of (\d+) \|", PAGE.read_text(), re.M)
    measured = [(kind, *map(str, (hits[kind], planted[kind], hits[kind], found[kind]))) for kind in KINDS]
    assert told == measured and sum(planted.values()) >= 60 and NOTHING.count("\n") > 60
