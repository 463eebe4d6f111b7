"""Web crawls, dumps of wikis and notebooks: many texts in one file, read as a stream."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_prep.config import SourceConfig
from data_prep.fetch.sources import cut_slices, find_corpus
from data_prep.read.parts import Rejected, read_part

ROOT = Path(__file__).resolve().parents[3]
PARAGRAPHS = "".join(
    f"<p>Geese sleep on one leg, says page {{0}}, for the {n}th time in a long night.</p>" for n in range(9)
)
PAGE = f"<html><body><nav><a href=/>Home</a></nav><article><h1>Geese</h1>{PARAGRAPHS}</article></body></html>"


def read(path: Path, **source: Any) -> tuple[list[str], Counter[str]]:
    """Return the kept texts, and the rejected by reason."""
    corpus = find_corpus([SourceConfig(path=str(path), **source)], {}, path.parent / "cache")
    items = [item for parts in cut_slices(corpus, 4096) for part in parts for item in read_part(part)]
    kept = [item.turns[0].text for item in items if not isinstance(item, Rejected)]
    return kept, Counter(item.reason for item in items if isinstance(item, Rejected))


def crawl(answers: Sequence[Any], *, packed: bool = True) -> bytes:
    """Return a WARC file with a request and an answer for each status, media type and body."""
    pytest.importorskip("warcio", reason="pip install --editable '.[docs]'")
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    sink = io.BytesIO()
    writer = WARCWriter(sink, gzip=packed)
    writer.write_record(writer.create_warcinfo_record("a.warc", {"software": "ours"}))
    for n, (status, media, body, *encoding) in enumerate(answers):
        headers = StatusAndHeaders(
            f"{status} X", [("Content-Type", media), *(("Content-Encoding", e) for e in encoding)], protocol="HTTP/1.1"
        )
        for kind in ("request", "response"):
            data = body if kind == "response" else b"GET / HTTP/1.1\r\n\r\n"
            record = writer.create_warc_record(
                f"http://x/{n}", kind, payload=io.BytesIO(data), http_headers=headers if kind == "response" else None
            )
            writer.write_record(record)
    return sink.getvalue()


ANSWERS = [
    (200, "text/html; charset=utf-8", PAGE.format("one").encode()),
    (200, "image/png", b"\x89PNG"),
    (404, "text/html", b"<p>not here</p>"),
    (200, "text/html", gzip.compress(PAGE.format("two").encode()), "gzip"),
    (200, "text/plain", "Gänse".encode()),
    (200, "text/html", b"<html></html>"),
    (200, "text/html", b"no gzip", "gzip"),
]


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "crawl.dat"])
def test_a_crawl_gives_the_article_of_each_page_and_counts_the_other_answers(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(crawl(ANSWERS, packed=name.endswith("gz")))

    kept, rejected = read(tmp_path / name, **({"format": "warc"} if name == "crawl.dat" else {}))

    assert [text.split(", says page ")[1].split(",")[0] for text in kept[:2]] == ["one", "two"]
    assert kept[2:] == ["Gänse"] and "Home" not in kept[0]
    assert rejected["WARC: image file, not a page"] == rejected["WARC: status 404"] == 1
    assert rejected["HTML without text"] == 2


def test_the_texts_that_a_crawl_was_turned_into_are_read(tmp_path: Path) -> None:
    pytest.importorskip("warcio", reason="pip install --editable '.[docs]'")
    body = "Über Gänse.\nZwei Zeilen.".encode()
    record = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body)
    (tmp_path / "a.warc.wet.gz").write_bytes(gzip.compress(record + body + b"\r\n\r\n") * 2)

    assert read(tmp_path / "a.warc.wet.gz") == (["Über Gänse.\nZwei Zeilen."] * 2, {})


@pytest.mark.parametrize("cut", [-40, 12])
def test_a_damaged_crawl_gives_the_pages_before_the_damage(tmp_path: Path, cut: int) -> None:
    whole = crawl([(200, "text/html", PAGE.format(n).encode()) for n in range(5)])
    (tmp_path / "a.warc.gz").write_bytes(whole[:cut] if cut < 0 else whole[:-200] + b"\0" * 50 + whole[-150:])

    kept, rejected = read(tmp_path / "a.warc.gz")

    assert len(kept) == 4 and sum(rejected.values()) == 1 and "damaged" in next(iter(rejected))


WIKI = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">
<siteinfo><namespaces><namespace key="14">Kategorie</namespace></namespaces></siteinfo>{}</mediawiki>"""
MARKUP = """{{Infobox bird|name=Goose|note={{nested|x}}}}
[[File:Goose.jpg|thumb|A ''goose'' with [[water]]]]
A '''goose''' is a [[Anatidae|water bird]]<ref name="a">{{cite book|title=X}}</ref> of the [[family (biology)]]<!-- no
-->, as in [[Star Trek: Voyager]].
== Sleep ==
* It sleeps on ''one'' leg &amp; sees [https://x.org all].
{| class="wikitable"
! a !! b
|-
| 1 || 2
|}
Last line.<br />Really.
[[Kategorie:Birds]]
[[de:Gänse]]
"""
PLAIN = """Goose

A goose is a water bird of the family (biology), as in Star Trek: Voyager.
Sleep
It sleeps on one leg & sees all.

Last line.
Really."""


def page(title: str, text: str, ns: int = 0, redirect: str = "") -> str:
    from xml.sax.saxutils import escape

    return (
        f"<page><title>{title}</title><ns>{ns}</ns><id>1</id>{redirect}"
        f"<revision><text>old</text></revision><revision><text>{escape(text)}</text></revision></page>"
    )


PAGES = [
    page("Goose", MARKUP),
    page("Talk:Goose", "Chatter.", ns=1),
    page("Geese", "#REDIRECT [[Goose]]", redirect='<redirect title="Goose" />'),
    page("Empty", "{{stub}}"),
    page("Duck", "A [[duck]]."),
]


@pytest.mark.parametrize("name", ["x-pages-articles.xml", "x-pages-articles-multistream.xml.bz2", "dump.dat"])
def test_a_dump_of_a_wiki_gives_its_articles_as_plain_text(tmp_path: Path, name: str) -> None:
    pytest.importorskip("mwparserfromhell", reason="pip install --editable '.[docs]'")
    body = WIKI.format("".join(PAGES)).encode()
    (tmp_path / name).write_bytes(bz2.compress(body[:300]) + bz2.compress(body[300:]) if name.endswith("bz2") else body)

    kept, rejected = read(tmp_path / name, **({"format": "wikipedia"} if name == "dump.dat" else {}))

    assert kept == [PLAIN, "Duck\n\nA duck."] and rejected == {"wiki page without text": 1}


def test_a_damaged_dump_gives_the_articles_before_the_damage(tmp_path: Path) -> None:
    pytest.importorskip("mwparserfromhell", reason="pip install --editable '.[docs]'")
    body = WIKI.format(page("Duck", "A [[duck]].") * 9).encode()
    (tmp_path / "cut.xml").write_bytes(body[:-100])
    (tmp_path / "cut.xml.bz2").write_bytes(bz2.compress(body)[:-20])

    assert read(tmp_path / "cut.xml") == (["Duck\n\nA duck."] * 8, {"damaged XML (ParseError)": 1})
    assert sum(read(tmp_path / "cut.xml.bz2")[1].values()) == 1


MEASURED = """
import sys
from pathlib import Path
from data_prep.config import SourceConfig
from data_prep.read.parts import read_part
from data_prep.fetch.sources import cut_slices, find_corpus
corpus = find_corpus([SourceConfig(path=sys.argv[1])], {})
print(sum(1 for parts in cut_slices(corpus, 2**23) for p in parts for i in read_part(p)))
print(int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) >> 10)
"""


def test_a_dump_is_read_a_page_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("mwparserfromhell", reason="pip install --editable '.[docs]'")
    talk = page("Talk:Duck", "x" * 100_000, ns=1)
    with gzip.open(tmp_path / "dump.xml.gz", "wb", compresslevel=1) as sink:
        head, tail = WIKI.split("{}")
        sink.write(head.encode())
        for _ in range(1000):
            sink.write(talk.encode())
        sink.write((page("Duck", "A [[duck]].") + tail).encode())

    command = [sys.executable, "-c", MEASURED, str(tmp_path / "dump.xml.gz")]
    count, peak = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()

    assert count == "1" and int(peak) < 160, f"{peak} MiB for a dump of 100 MB"


def test_a_notebook_gives_what_is_written_in_its_cells(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Geese\n", "They sleep."]},
        {"cell_type": "code", "source": "print(1)", "outputs": [{"text": "1 output"}]},
        {"cell_type": "code", "source": []},
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    (tmp_path / "b.ipynb").write_text('{"cells": []}')
    (tmp_path / "c.ipynb").write_text('{"cells": [')

    assert read(tmp_path) == (
        ["# Geese\nThey sleep.\n\nprint(1)"],
        {"notebook without text": 1, "damaged notebook (JSONDecodeError)": 1},
    )
