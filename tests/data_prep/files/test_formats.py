from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DataError
from data_prep.config import DataConfig, SourceConfig
from data_prep.fetch.corpus import fetch_corpus
from data_prep.fetch.provenance import read_document
from data_prep.fetch.sources import cut_slices, find_corpus
from data_prep.files.formats import BY_SUFFIX, COMPRESSIONS, Format, format_of
from data_prep.files.other_formats import BY_SUFFIX as ADVICE_BY_SUFFIX
from data_prep.read.long_texts import WINDOW_BYTES, read_pieces
from data_prep.read.parts import Rejected, read_part
from data_prep.read.tables import JsonSplitter
from data_prep.shards import Manifest, ShardReader

ROWS = [{"prompt": f"What is {n}?", "completion": f"A number, {n * n} ≈ squared.\nYes."} for n in range(300)]


def read(path: Path, slice_bytes: int = 2**30, **source: Any) -> tuple[list[tuple[str, ...]], Counter[str]]:
    """Return the kept texts of a path, and the rejected by reason."""
    corpus = find_corpus([SourceConfig(path=str(path), **source)], {}, path.parent / "cache")
    items = [item for parts in cut_slices(corpus, slice_bytes) for part in parts for item in read_part(part)]
    kept = [tuple(turn.text for turn in item.turns) for item in items if not isinstance(item, Rejected)]
    return kept, Counter(item.reason for item in items if isinstance(item, Rejected))


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=40)
    return sink.getvalue()


def as_arrow(rows: list[dict[str, Any]], new: Any = pa.ipc.new_stream) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=70)
    return sink.getvalue()


FILES = {
    "rows.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "rows.json": json.dumps(ROWS, indent=1).encode(),
    "one-after-the-other.json": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "rows.csv": as_csv(ROWS),
    "semicolons.csv": b"\xef\xbb\xbf" + as_csv(ROWS, ";"),
    "rows.tsv": as_csv(ROWS, "\t"),
    "rows.parquet": as_parquet(ROWS),
    "stream.arrow": as_arrow(ROWS),
    "file.arrow": as_arrow(ROWS, pa.ipc.new_file),
}


@pytest.mark.parametrize("name", FILES)
def test_every_table_gives_the_same_rows_whole_or_in_slices(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])

    whole, cut = read(tmp_path / name), read(tmp_path / name, slice_bytes=1024)

    assert whole == cut == ([tuple(row.values()) for row in ROWS], {})


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", lambda data: pa.compress(data, "zstd", asbytes=True)),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_a_compressed_file_is_read_like_the_plain_one(
    tmp_path: Path, name: str, suffix: str, compress: Callable[..., Any]
) -> None:
    (tmp_path / f"{name}{suffix}").write_bytes(compress(FILES[name]))

    assert read(tmp_path / f"{name}{suffix}", slice_bytes=1024)[0] == [tuple(row.values()) for row in ROWS]


def test_names_tell_formats() -> None:
    assert format_of("a/b.JSONL.GZ") == Format(kind="jsonl", compression="gzip")
    assert format_of("pages.tgz") == Format(kind="tar", compression="gzip")
    assert [format_of(name) for name in ("a.png", "README", "a.parquet.gz", "a.zip.gz", ".gz")] == [None] * 5


@given(
    values=st.lists(
        st.recursive(st.integers() | st.text(max_size=8), lambda s: st.lists(s) | st.dictionaries(st.text(), s))
    ),
    size=st.integers(1, 50),
    indent=st.sampled_from([None, 2]),
)
def test_a_json_array_is_split_into_its_elements_wherever_its_chunks_end(
    values: list[Any], size: int, indent: int | None
) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=False).encode()
    found: list[Any] = []
    splitter, at = JsonSplitter(), 0
    while at < len(data):
        end = at + size
        while data[:end].endswith(b"\\"):
            end += 1
        found += splitter.feed(data[at:end])
        at = end
    found += splitter.take()

    assert [json.loads(raw) for raw in found] == values


@settings(max_examples=20, deadline=None)
@given(
    cut=st.integers(WINDOW_BYTES // 8, 3 * WINDOW_BYTES),
    kind=st.sampled_from([b"a line of text\n", b"word ", b"\xc3\xa4", b"p\n\n"]),
)
def test_a_long_text_has_the_same_pieces_wherever_it_is_cut(cut: int, kind: bytes) -> None:
    data = kind * (int(3.5 * WINDOW_BYTES) // len(kind))

    whole = list(read_pieces(io.BytesIO(data), 0, len(data)))

    ranges = [(at, min(at + cut, len(data))) for at in range(0, len(data), cut)]
    parts = [piece for start, end in ranges for piece in read_pieces(io.BytesIO(data), start, end)]
    assert parts == whole and b"".join(whole) == data and len(whole) == 4
    assert all(piece.decode() for piece in whole)


HTML = """<html><head><title>t</title><style>b {}</style></head><body><nav><a href=/>Home</a> <a href=/x>Shop</a></nav>
<article><h1>On geese</h1>%s</article><script>let x = 1</script><footer>Imprint</footer></body></html>"""
PARAGRAPHS = "".join(
    f"<p>Geese, of which there are {n} on this pond, sleep on one leg and keep one eye open all night long.</p>"
    for n in range(9)
)


def test_html_is_its_article_or_all_of_its_text(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura", reason="pip install --editable '.[docs]'")
    (tmp_path / "page.html").write_text(HTML % PARAGRAPHS)

    ((article,),), _ = read(tmp_path / "page.html")
    ((plain,),), _ = read(tmp_path / "page.html", html="plain")

    assert "8 on this pond" in article and "Imprint" not in article and "Shop" not in article
    assert plain.startswith("Home Shop\nOn geese") and plain.endswith("Imprint") and "let x" not in plain


@pytest.mark.slow
def test_the_articles_of_real_pages_are_found(test_data: Path) -> None:
    pytest.importorskip("trafilatura", reason="pip install --editable '.[docs]'")
    truth = json.loads((test_data / "html_ground_truth.json").read_text())
    pages = sorted((test_data / "html").iterdir())

    scores = [f1(read(page)[0][0][0], truth[page.name.partition(".")[0]]["articleBody"]) for page in pages]

    assert len(scores) == 60 and sum(scores) / len(scores) > 0.975


def f1(found: str, expected: str) -> float:
    """Return the harmonic mean of precision and recall, by words."""
    ours, theirs = (Counter(re.findall(r"\w+", text)) for text in (found, expected))
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def test_word_files_and_books_give_their_text_in_order(tmp_path: Path) -> None:
    docx = pytest.importorskip("docx", reason="pip install --editable '.[docs]'")
    document = docx.Document()
    document.add_paragraph("First.")
    document.add_table(1, 2).cell(0, 1).text = "cell"
    document.add_paragraph("Last.")
    document.save(str(tmp_path / "a.docx"))
    write_epub(tmp_path / "b.epub")

    assert read(tmp_path / "a.docx") == ([("First.\n\tcell\nLast.",)], {})
    assert read(tmp_path / "b.epub") == ([("Chapter two\n\nChapter one",)], {})


def write_epub(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as book:
        book.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="in/book.opf"/></rootfiles></container>',
        )
        book.writestr(
            "in/book.opf",
            '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="a" href="one%201.xhtml"/>'
            '<item id="b" href="two.xhtml"/></manifest><spine><itemref idref="b"/>'
            '<itemref idref="a"/></spine></package>',
        )
        book.writestr("in/one 1.xhtml", "<html><body><p>Chapter one</p></body></html>")
        book.writestr("in/two.xhtml", "<html><body><p>Chapter two</p></body></html>")


def pdf(text: str) -> bytes:
    """Return the smallest PDF that shows a text."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body = b"%PDF-1.4\n" + b"".join(b"%d 0 obj\n%s\nendobj\n" % (n, o) for n, o in enumerate(objects, start=1))
    return body + b"trailer << /Root 1 0 R /Size 6 >>\nstartxref\n0\n%%EOF\n"


def test_a_pdf_gives_its_text_layer_and_one_without_is_rejected(tmp_path: Path) -> None:
    pytest.importorskip("pypdf", reason="pip install --editable '.[docs]'")
    (tmp_path / "a.pdf").write_bytes(pdf("Geese sleep."))
    (tmp_path / "b.pdf").write_bytes(pdf(""))
    (tmp_path / "c.pdf").write_bytes(pdf("x")[:200])

    assert read(tmp_path / "*.pdf")[0] == [("Geese sleep.",)]
    assert read(tmp_path / "b.pdf")[1] == {"PDF without text": 1}
    assert sum(read(tmp_path / "c.pdf")[1].values()) == 1


def test_a_library_that_is_missing_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "a.pdf").write_bytes(b"%PDF")

    with pytest.raises(DataError, match=r"a.pdf: .* library pypdf, .*pip install --editable '\.\[docs\]'"):
        read(tmp_path / "a.pdf")


@pytest.mark.parametrize("name", ["rows.json", "rows.csv", "rows.parquet", "rows.jsonl.gz", "rows.zip"])
def test_each_piece_leads_back_to_its_row_in_every_format(
    tmp_path: Path, prepared: Callable[..., Manifest], name: str
) -> None:
    if name == "rows.zip":
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("x/rows.jsonl", FILES["rows.jsonl"])
    else:
        data = gzip.compress(FILES["rows.jsonl"]) if name.endswith(".gz") else FILES[name]
        (tmp_path / name).write_bytes(data)

    manifest = prepared(tmp_path / name, slice_bytes=1024, validation_fraction=0.0)

    reader = ShardReader(tmp_path / "data", manifest, "train")
    pieces = [piece for row in range(len(reader)) for piece in reader.pieces(row)]
    found = {p.position: read_document(tmp_path / "data", manifest, p.source, p.position) for p in pieces}
    assert {n: json.loads(text) for n, text in found.items()} == dict(enumerate(ROWS))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("film.srt", r"\(1 \.srt\); \.srt: subtitles: .* `format: text`"),
        ("mail.mbox", r"\(1 \.mbox\); \.mbox: mail: .* `format: text`"),
        ("letter.DOC", r"\.doc: save them as \.docx"),
        ("sheet.xlsx", r"\.xlsx: spreadsheets: save each sheet as \.csv"),
        ("feed.rss", r"\.rss: XML: .* `format: xml`"),
        ("other.xyz", r"\(1 \.xyz\); supported are .* `format: text`"),
    ],
)
def test_a_file_that_is_not_read_is_named_with_what_can_be_done(tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / name).write_text("1\n00:00:01,000 --> 00:00:02,000\nHello.\n")

    with pytest.raises(DataError, match=f"nothing to read here .*{advice}"):
        find_corpus([SourceConfig(path=str(tmp_path))], {})


def test_no_format_that_is_read_has_advice() -> None:
    assert not set(ADVICE_BY_SUFFIX) & {*BY_SUFFIX, *COMPRESSIONS}


def test_files_that_are_not_read_beside_others_are_told_with_what_can_be_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("A text.\n")
    (tmp_path / "b.eml").write_text("From: a\n\nA mail.\n")

    fetch_corpus(DataConfig.model_validate({"sources": [{"path": str(tmp_path)}]}), tmp_path / "cache")

    assert "not read: 1 .eml; .eml: mail: write the texts" in caplog.text
