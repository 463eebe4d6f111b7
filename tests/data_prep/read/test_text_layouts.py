"""What people's text files are written in: encodings, ends of lines, separators, quotes, headers."""

from __future__ import annotations

import codecs
import gzip
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.errors import DataError
from data_prep.config import SourceConfig
from data_prep.fetch.provenance import read_document
from data_prep.fetch.sources import cut_slices, find_corpus
from data_prep.files.formats import Format, format_of, with_more
from data_prep.read.parts import Rejected, read_part
from data_prep.read.table_dialect import table_layout
from data_prep.shards import Manifest, ShardReader

PAIRS = [(f"Où est {n} ?", f"Là-bas, à côté de {n * 7} œufs.") for n in range(200)]


def read(path: Path, **source: Any) -> tuple[list[tuple[str, ...]], Counter[str]]:
    """Return the kept texts, and the rejected by reason."""
    corpus = find_corpus([SourceConfig(path=str(path), **source)], {}, path.parent / "cache")
    items = [item for parts in cut_slices(corpus, 4096) for part in parts for item in read_part(part)]
    kept = [tuple(turn.text for turn in item.turns) for item in items if not isinstance(item, Rejected)]
    return kept, Counter(item.reason for item in items if isinstance(item, Rejected))


def table(
    rows: Sequence[Sequence[Any]],
    separator: str = ",",
    end: str = "\n",
    header: Sequence[str] | None = ("prompt", "completion"),
) -> str:
    lines = [separator.join(header)] if header else []
    return end.join([*lines, *(separator.join(f'"{cell}"' for cell in row) for row in rows)]) + end


BODIES = {
    "a.csv": table(PAIRS, end="\r\n"),
    "a.tsv": "prompt\tcompletion\n" + "".join("\t".join(row) + "\n" for row in PAIRS),
    "a.jsonl": "".join(json.dumps({"prompt": a, "completion": b}, ensure_ascii=False) + "\n" for a, b in PAIRS),
    "a.json": json.dumps([{"prompt": a, "completion": b} for a, b in PAIRS], ensure_ascii=False),
}
MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("encoding", MARKED)
def test_a_byte_order_mark_tells_the_encoding_of_every_kind_of_text(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(MARKED[encoding] + BODIES[name].encode(encoding))

    assert read(tmp_path / name) == (PAIRS, {})


@pytest.mark.parametrize("name", [*BODIES, "a.txt"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "utf-16-be"])
def test_text_without_a_mark_is_refused_with_the_key_to_write_and_read_with_it(
    tmp_path: Path, name: str, encoding: str
) -> None:
    (tmp_path / name).write_bytes(BODIES.get(name, "Où est-il ? Là-bas.\n" * 50).encode(encoding))

    with pytest.raises(DataError, match=f"none of its files can be read .*a.*write .*`?encoding.*{encoding}"):
        read(tmp_path / name)

    kept, rejected = read(tmp_path / name, encoding=encoding)
    assert kept == (PAIRS if name != "a.txt" else [("Où est-il ? Là-bas.\n" * 50,)]) and rejected == {}


def test_a_file_in_another_encoding_does_not_cost_its_neighbours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes("déjà vu\n".encode("latin-1") * 9)
    (tmp_path / "in" / "b.txt").write_text("bien sûr")

    kept, rejected = read(tmp_path / "in")

    assert kept == [("bien sûr",)] and rejected == {"not UTF-8: write its `encoding`, such as cp1252": 1}
    assert "a.txt: cannot be read: not UTF-8" in caplog.text


def test_a_packed_file_whose_name_hides_it_is_told_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b'{"text": "goose"}\n'))

    with pytest.raises(DataError, match=r"a\.jsonl: is gzip data: name it a\.jsonl\.gz"):
        read(tmp_path / "a.jsonl")


def test_a_stray_byte_costs_its_row_and_is_told_with_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f'{{"text": "row {n}"}}\n'.encode() for n in range(50)]
    rows[7] = b'{"text": "caf\xe9"}\n'
    (tmp_path / "a.jsonl").write_bytes(b"".join(rows))

    kept, rejected = read(tmp_path / "a.jsonl")

    assert len(kept) == 49 and rejected == {"invalid UTF-8": 1}
    assert "a.jsonl: 1 place in its first" in caplog.text and "`encoding: cp1252`" in caplog.text


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_utf8_is_not_read_as_something_else_because_the_source_says_so(tmp_path: Path, encoding: str) -> None:
    text = "Là-bas, à côté" if encoding == "latin-1" else "plain"
    (tmp_path / "a.txt").write_text(f"{text}\n" * 9)

    with pytest.raises(DataError, match=r"a.txt: this file is UTF-8, not .*; give it a source of its own"):
        read(tmp_path / "a.txt", encoding=encoding)


def test_latin1_is_not_taken_for_windows_1252(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("5 €".encode("cp1252"))

    with pytest.raises(DataError, match=r"a.txt: has bytes that are characters in cp1252, .* `encoding: cp1252`"):
        read(tmp_path / "a.txt", encoding="latin-1")
    assert read(tmp_path / "a.txt", encoding="cp1252")[0] == [("5 €",)]


def test_bytes_that_an_encoding_has_not_cost_their_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\x8d\xa7"}\n{"text": "caf\xe9"}\n' * 2)

    assert read(tmp_path / "a.jsonl", encoding="cp1252") == ([("café",)] * 2, {"invalid cp1252": 2})


@pytest.mark.parametrize("html", ["article", "plain"])
def test_a_web_page_is_read_in_the_encoding_that_it_declares(tmp_path: Path, html: str) -> None:
    body = "".join(f"<p>Gänse schlafen nachts auf einem Bein, für 5 €, die {n}te.</p>" for n in range(9))
    page = f'<html><head><meta charset="ISO-8859-1"></head><body><article>{body}</article></body></html>'
    (tmp_path / "a.html").write_bytes(page.encode("cp1252"))
    (tmp_path / "b.html").write_bytes(page.replace("<meta", "<x").encode("utf-16"))

    kept, rejected = read(tmp_path, html=html)

    assert len(kept) == 2 and rejected == {}
    assert all("Gänse schlafen nachts auf einem Bein, für 5 €" in text for (text,) in kept)


def test_xml_is_read_in_the_encoding_that_the_source_gives(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes('<?xml version="1.0" encoding="utf-8"?><a>Gänse</a>'.encode("cp1252"))

    assert read(tmp_path / "a.xml", encoding="cp1252") == ([("Gänse",)], {})


def test_an_encoding_that_does_not_exist_is_refused_with_the_configuration() -> None:
    with pytest.raises(ValidationError, match="'latin-nine' is not a known encoding; expected one such as latin-1"):
        SourceConfig(path="x", encoding="latin-nine")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.csv.gz"])
def test_carriage_returns_alone_end_lines(tmp_path: Path, name: str) -> None:
    body = BODIES[name.removesuffix(".gz")].replace("\r\n", "\r").replace("\n", "\r").encode()
    (tmp_path / name).write_bytes(gzip.compress(body) if name.endswith(".gz") else body)

    assert read(tmp_path / name) == (PAIRS, {})


QUOTED = ['"I never liked it, he said', 'He said "no".', '"Yes', "plain, with a comma", '"Closed."']


def test_tsv_whose_lines_have_the_headers_tabs_is_read_without_quoting(tmp_path: Path) -> None:
    rows = [(f"Question {n}?", QUOTED[n % 5] if n % 7 else f"Answer {n}.") for n in range(200)]
    (tmp_path / "a.tsv").write_text(table([], "\t") + "".join("\t".join(row) + "\n" for row in rows))

    assert read(tmp_path / "a.tsv") == (rows, {})


ROWS = [(f"What is {n}?", 'A "number",\tas\nthey say.' if n % 3 else f"It is {n}, yes.") for n in range(90)]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_what_separates_cells_is_seen_and_quoted_cells_may_have_lines(
    tmp_path: Path, separator: str, suffix: str
) -> None:
    body = table([tuple(cell.replace('"', '""') for cell in row) for row in ROWS], separator)
    (tmp_path / f"a.{suffix}").write_text(body)

    assert read(tmp_path / f"a.{suffix}", **({"separator": separator} if suffix == "tsv" else {})) == (ROWS, {})


@pytest.mark.parametrize(
    ("lines", "separator", "quoted"),
    [
        (["a;b", "1,5;x, y", "2,5;z"], ";", True),
        (["a,b;c", "1,x;y", "2,z;w"], ",", True),
        (["text", "Well, yes; no | maybe"], "\x1f", True),
        (["text", '"Well, yes"', '"No, ""never"""'], ",", True),
        (["a\tb", "x\ty"], "\t", False),
        (["a,b", '"x ""y"" z","one', 'two, three"', '"never,b'], ",", True),
        (["a,b", '"x\ry",1', "x\ry,2"], ",", True),
        (["a\tb", 'x\t"y"', 'z\t"never'], "\t", False),
        (["a\tb", 'x\t"Hello, you"', "y\tno comma"], "\t", True),  # as Excel writes it
        (["a\tb", 'x\t"Hello, you"', "y\ta, comma"], "\t", False),
        (['"a"\t"b"', '"x"\t"y"'], "\t", True),
    ],
)
def test_the_reading_that_explains_most_lines_is_taken(lines: list[str], separator: str, quoted: bool) -> None:
    assert table_layout([line + "\n" for line in lines], None) == (separator, quoted)


def test_the_line_by_which_excel_names_the_separator_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfsep=;\r\nprompt;completion\r\na;b, c\r\n")

    assert read(tmp_path / "a.csv") == ([("a", "b, c")], {})


def test_a_quote_that_is_never_closed_costs_no_rows(tmp_path: Path) -> None:
    rows = [f"q{n},a{n}" for n in range(300)]
    rows[5], rows[50] = 'q5,"never closed', 'q50,"said" he'
    (tmp_path / "a.csv").write_text("prompt,completion\n" + "".join(f'{row}\n"x, {row[1:3]}",y\n' for row in rows))

    kept, rejected = read(tmp_path / "a.csv")

    assert len(kept) == 600 and rejected == {} and ("q5", '"never closed') in kept and ("q50", '"said" he') in kept


def test_a_table_that_ends_inside_of_a_cell_gives_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,completion\nq,"a\nb"\nq2,"line 1\nline 2\nline 3')

    assert read(tmp_path / "a.csv") == ([("q", "a\nb")], {"bad CSV (unexpected end of data)": 1})


def test_an_open_quote_before_damage_costs_no_rows(tmp_path: Path) -> None:
    body = "prompt,completion\n" + 'x,"open\n' + "".join(f"q{n},a{n}\n" for n in range(3000)) + '"a, b",c\n'
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(body.encode())[:-40])

    kept, rejected = read(tmp_path / "a.csv.gz")

    assert kept[:2] == [("x", '"open'), ("q0", "a0")] and len(kept) > 2900
    assert rejected == {"damaged compression (EOFError)": 1}


def test_columns_name_the_cells_of_a_table_without_a_header(tmp_path: Path) -> None:
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        (tmp_path / name).write_text(table([*ROWS[:1], ("x", "y")], separator, header=None).replace("number", "nr"))
        kept, rejected = read(tmp_path / name, columns=["prompt", "completion"])
        assert kept[-1] == ("x", "y") and len(kept) == 2 and rejected == {}


@pytest.mark.parametrize(
    ("body", "source", "message"),
    [
        ("How are you?,Fine.\nAnd you?,Too.\n", {}, r"first line is no header but a row \(How are you\? \| Fine\.\)"),
        ("How are you?,Fine.\nAnd you?,Too.\n", {}, r"`columns: \[prompt, completion\]`"),
        ("Well, yes.\nNo\n", {}, r"no row has the columns of the first line. Its first line is no header but a row"),
        ("1,2,3\n4,5,6\n", {}, r"`columns: \[column1, column2, column3\]`"),
        ("frage,antwort\nx,y\n", {}, "If its first line is a row and no header, name the columns"),
        ("a,b,c\n", {"columns": ["prompt", "completion"]}, "first row has 3 cells, but `columns` .* names 2"),
        ("prompt,completion\na,b\n", {"columns": ["prompt", "completion"]}, "its first line is a header"),
    ],
)
def test_a_header_that_is_none_is_told_with_the_key_to_write(
    tmp_path: Path, body: str, source: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.csv").write_text(body)

    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.csv", **source)


def test_one_column_without_a_header_is_whole_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Well, yes.\nNo; never.\n")

    assert read(tmp_path / "a.csv", columns=["text"]) == ([("Well, yes.",), ("No; never.",)], {})


def test_keys_for_tables_are_refused_where_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")

    with pytest.raises(DataError, match="`columns` is for CSV and TSV, and no file here is either"):
        read(tmp_path / "a.txt", columns=["text"])


def test_a_column_that_is_named_twice_does_not_hide_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,text\nfirst,second\n")

    assert read(tmp_path / "a.csv") == ([("first",)], {})


def test_a_row_leads_back_to_its_text_whatever_the_file_is_written_in(
    tmp_path: Path, prepared: Callable[..., Manifest]
) -> None:
    keys = {"format": "csv", "encoding": "cp1252", "columns": ["prompt", "completion"]}
    (tmp_path / "a.dat").write_bytes(table(PAIRS, "|", header=None).encode("cp1252"))

    manifest = prepared({"path": str(tmp_path / "a.dat"), **keys}, validation_fraction=0.0)

    reader = ShardReader(tmp_path / "data", manifest, "train")
    piece = reader.pieces(0)[0]
    found = json.loads(read_document(tmp_path / "data", manifest, piece.source, piece.position))
    assert tuple(found.values()) == PAIRS[piece.position]


CARDS = [(f"What is {n}, in words?", f"It is {n + 1} minus one.") for n in range(20)]
ANKI: dict[str, tuple[str, str, list[tuple[str, ...]]]] = {
    "two columns": ("#separator:Comma\n#html:false\n", ",", [()]),
    "tags in the third column": ("#separator:semicolon\n#html:true\n#tags column:3\n", ";", [(), ("geo::x",)]),
    "guid first": ("#separator:Pipe\n#guid column:1\n", "|", [("x1",), ()]),
    "named columns": ("#separator:tab\n#columns:Front\tBack\tTags\n#tags column:3\n", "\t", [(), ("geo",)]),
}


SEEN_ELSEWHERE = {
    "blank line after the comments": "#separator:Comma\n#html:false\n\n",
    "empty columns": "#separator:Comma\n#columns:\n",
    "columns of another number": "#separator:Comma\n#columns:Front\n",
    "comment before the first note": "#separator:Comma\n#html:false\n# made by hand, today\n\n# again\n",
    "comment between": "#html:true\n# of mine\n#separator:Comma\n",
    "columns of which one has no name": "#separator:Comma\n#columns:Front,Back,\n",
    "impossible column": f"#separator:Comma\n#tags column:{'1' * 5000}\n",
    "column zero": "#separator:Comma\n#tags column:0\n#deck column:x\n",
}
ANKI |= {way: (head, ",", [(), ("x",)] if "no name" in way else [()]) for way, head in SEEN_ELSEWHERE.items()}


@pytest.mark.parametrize("way", ANKI)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_table_of_ankis_export_is_read_as_its_cards(tmp_path: Path, way: str, name: str) -> None:
    head, separator, around = ANKI[way]
    rows = [(*around[0], *card, *(around[1] if len(around) > 1 else ())) for card in CARDS]
    (tmp_path / name).write_text(head + table(rows, separator, header=None))

    assert read(tmp_path / name) == (CARDS, {})


def test_ankis_separator_may_be_the_character_itself(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("#separator:\t\n#html:true\n" + table(CARDS, "\t", header=None))

    assert read(tmp_path / "a.csv") == (CARDS, {})


@pytest.mark.parametrize(
    "head",
    ["#tags: a list\n", "#deck:Foo\n", "#columns:4,rows:3\n", "#html: a page\n", "#separator:none\n", '#separator:"\n'],
)
def test_a_comment_that_is_like_ankis_does_not_make_a_table_ankis(tmp_path: Path, head: str) -> None:
    (tmp_path / "a.csv").write_text(head + table(CARDS))

    assert read(tmp_path / "a.csv") == (CARDS, {})
    assert find_corpus([SourceConfig(path=str(tmp_path / "a.csv"))], {}).files[0].columns.format.names == ()


@pytest.mark.parametrize(
    ("head", "header"),
    [
        ("# exported by a tool, on Monday, with care\n# do not edit\n", "prompt,completion"),
        ("##version=4\n", "#prompt,completion"),
        ("", "#,prompt,completion"),
    ],
)
def test_comments_before_the_header_of_a_table_are_no_header(tmp_path: Path, head: str, header: str) -> None:
    columns = header.count(",") + 1
    rows = [("1", *card)[-columns:] for card in CARDS]
    (tmp_path / "a.csv").write_text(head + table(rows, header=header.split(",")))

    kept, rejected = read(tmp_path / "a.csv", fields={"prompt": header.split(",")[-2], "completion": "completion"})

    assert (kept, rejected) == (CARDS, {})


@pytest.mark.parametrize(
    ("body", "source", "rows"),
    [
        ("#id;text\n1;hello, there\n2;a, b\n", {"text": "text"}, [("hello, there",), ("a, b",)]),
        (
            "#text\nhello, you there\nfoo bar\nwhat\n",
            {"text": "#text"},
            [("hello, you there",), ("foo bar",), ("what",)],
        ),
        ("#text\nhello, you there.\nfoo, bar\n", {"text": "#text"}, [("hello, you there.",), ("foo, bar",)]),
        ("#id,text\n\nb,hello\nc,bye\n", {"text": "text"}, [("hello",), ("bye",)]),
        ("#id,text\n1,hello, world\n2,foo bar\n3,more\n", {"text": "text"}, [("foo bar",), ("more",)]),
        ("# made today\n#id,text\n# by me\n1,foo\n2,bar\n", {"text": "text"}, [("foo",), ("bar",)]),
    ],
)
def test_a_header_that_begins_with_a_number_sign_is_no_comment(
    tmp_path: Path, body: str, source: dict[str, str], rows: list[tuple[str, ...]]
) -> None:
    (tmp_path / "a.csv").write_text(body)

    assert read(tmp_path / "a.csv", fields=source)[0] == rows


@pytest.mark.parametrize(
    ("body", "columns", "rows"),
    [
        ("#love is, all\n#hate\ntext one\n", ["text"], [("#love is, all",), ("#hate",), ("text one",)]),
        ("#love,5\nwar,3\npeace,4\n", ["prompt", "completion"], [("#love", "5"), ("war", "3"), ("peace", "4")]),
        ("# two columns\n\nwar,3\npeace,4\n", ["prompt", "completion"], [("war", "3"), ("peace", "4")]),
    ],
)
def test_a_first_row_that_begins_with_a_number_sign_is_no_comment(
    tmp_path: Path, body: str, columns: list[str], rows: list[tuple[str, ...]]
) -> None:
    (tmp_path / "a.csv").write_text(body)

    assert read(tmp_path / "a.csv", columns=columns)[0] == rows


@pytest.mark.parametrize(
    "head", ["# Title\n", '# it says "so\n', "# c\n\n", "# c\n\n# d\n\n", "sep=;\n# c\n", "\ufeff# c, d, e\n", "#\n"]
)
@pytest.mark.parametrize("last", ["", "one,two,three,four\n"])
def test_comments_are_passed_over_though_a_row_is_malformed(tmp_path: Path, head: str, last: str) -> None:
    mark = ";" if head.startswith("sep=") else ","
    (tmp_path / "a.csv").write_text(head + table(CARDS, mark) + last.replace(",", mark))

    kept, rejected = read(tmp_path / "a.csv")

    assert kept == CARDS and sum(rejected.values()) == bool(last)


def test_a_row_traced_back_to_a_table_with_comments_is_the_same_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("# a comment\n" + table(CARDS))
    (file,) = find_corpus([SourceConfig(path=str(tmp_path / "a.csv"))], {}).files

    again = with_more(format_of("a.csv") or Format(), file.info.reading)

    assert again == file.columns.format and again.skipped == 1
