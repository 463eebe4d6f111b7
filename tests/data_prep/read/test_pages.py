"""Running text of web pages, books and XML: what ends a line, what does not, and what is left out."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest

from data_prep.files.bounded_io import RecordError
from data_prep.read.pages.extraction import extract_text, whole_article
from data_prep.read.pages.markup import html_text

pytest.importorskip("selectolax", reason="pip install --editable '.[docs]'")

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="O/p.opf"/>'
    "</rootfiles></container>"
)
TEI = """<TEI xmlns="http://www.tei-c.org/ns/1.0"><teiHeader><title>Metadata</title></teiHeader><text><body>
<div><head>Act <hi>One</hi></head><p>He read <title>Emma</title><note>A novel by
  <name>Austen</name>.</note> at break<lb break="no"/>fast, and <choice><sic>sadi</sic><corr>said</corr></choice>:
  <quote><lg><l>O for a <emph>Muse</emph>
  of fire</l><l>that would ascend</l></lg></quote> and<pb n="2"/>left.</p>
<sp><speaker>Nora.</speaker><p>Come <stage>(softly)</stage> in.</p></sp></div>
<list><item>one</item><item>two</item></list><table><row><cell>a</cell><cell>b</cell></row></table>
</body></text></TEI>"""


def page(body: str) -> str:
    return extract_text("page", f"<html><head><title>T</title></head><body>{body}</body></html>".encode())


def xml(text: str) -> str:
    return extract_text("xml", text.encode())


def book(chapters: dict[str, str], spine: str, manifest: str = "", **more: str) -> bytes:
    """Return an EPUB of pages by name; `more` are other files in it."""
    items = "".join(f'<item id="{n}" href="{n}.xhtml" media-type="application/xhtml+xml"/>' for n in chapters)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("META-INF/container.xml", CONTAINER)
        archive.writestr(
            "O/p.opf",
            '<package xmlns="http://www.idpf.org/2007/opf" xmlns:epub="http://www.idpf.org/2007/ops">'
            f"<manifest>{items}{manifest}</manifest>{spine}</package>",
        )
        for name, body in chapters.items():
            archive.writestr(
                f"O/{name}.xhtml",
                '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml" '
                'xmlns:epub="http://www.idpf.org/2007/ops"><head><title/><script src="x"/></head>'
                f"<body>{body}</body></html>",
            )
        for path, text in more.items():
            archive.writestr(path.replace("__", "/"), text)
    return target.getvalue()


def spine(*names: str, more: str = "") -> str:
    return f"<spine>{''.join(f'<itemref idref={name!r}/>' for name in names)}{more}</spine>"


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ("<p>He <i>was</i> a <a href='x'>real</a>\n   <code>one</code>, x<sup>2</sup>.", ["He was a real one, x²."]),
        ("<h1>A</h1>loose <b>text</b><div>B<p>C</div>", ["A", "loose text", "B", "C"]),
        ("<p>Roses<br>are red<br/><br><br>violets", ["Roses", "are red", "", "violets"]),
        ("<ul><li>one <em>x</em><li>two<ul><li>three</ul></ul>", ["one x", "two", "three"]),
        ("<dl><dt>term<dd>what it is</dl>", ["term", "what it is"]),
        ("<p>before<pre>\ndef f():\n    <b>return</b>  1\n\n# end\n</pre>after", [
            "before", "def f():", "    return  1", "", "# end", "after"]),
        ("<table><tr><th>a<th>b<tr><td><p>1</p><td>2<br>3<tr><td><td>only</table>", ["a\tb", "1\t2 3", "\tonly"]),
        ("<table><tr><td><h2>Menu</h2><p>home<td><p>Text.<p>More.</table>", ["Menu", "home", "Text.", "More."]),
        ("<p>a</p><!-- no --><script>let x</script><style>p{}</style><noscript>no</noscript><p>b", ["a", "b"]),
        ("<p>日本\n  語 and\nmore<p><a href='x'>Home</a><a href='y'>About</a>", ["日本語 and more", "Home About"]),
        ("<p>&nbsp;</p><p>\u200b</p><p>10&nbsp;km</p>", ["10\u00a0km"]),
        ("<p><ruby>漢<rp>(</rp><rt>kan</rt><rp>)</rp>字<rt>ji</rt></ruby>", ["漢字"]),
        ("<p>word<sup><a href='#n1'>1</a></sup> x<a href='#a'>1</a> y<a class='footnote-ref' href='#f'>2</a> z [<a "
         "href='#g'><sup>3</sup></a>]<p><a href='#r1'>↩</a> A note", [
            "word[1] x1 y[2] z [3]", "A note"]),
    ],
)  # fmt: skip
def test_a_plain_page_has_a_line_for_each_block_and_for_nothing_else(body: str, lines: list[str]) -> None:
    assert page(body).split("\n") == lines


@pytest.mark.parametrize("kind", ["article", "page"])
@pytest.mark.parametrize(
    ("marked_up", "text"),
    [
        ("10<sup>3</sup> m<sup>2</sup> and 5 cm<sup>-1</sup>", "10³ m² and 5 cm⁻¹"),
        ("<i>x</i><sup>\u22121</sup> of (a + b)<sup><b>2</b></sup>", "x⁻¹ of (a + b)²"),
        ("mol<sup>-1</sup>, Na<sup>+</sup> and SO<sub>4</sub><sup>2-</sup>", "mol⁻¹, Na⁺ and SO4²⁻"),
        ("the 1<sup>st</sup> and 2<sup>n</sup> of H<sub>2</sub>O", "the 1st and 2n of H2O"),
        ("a study<sup>3</sup> of 9<sup class='footnote'>4</sup>", "a study3 of 94"),
        ("a<br><sup>2</sup> and 7 <sup>3</sup>", "2 and 7 3"),
    ],
)
def test_an_exponent_is_written_in_superscript_characters_and_nothing_else_is(
    kind: str, marked_up: str, text: str
) -> None:
    filling = "<p>The port is deep, and many ships of all kinds come to it in every season of the year.</p>" * 9
    data = f"<html><body><article>{filling}<p>It says {marked_up} here, as the pilots know.</p></article></body></html>"

    assert text in extract_text(kind, data.encode())


def test_a_page_is_read_in_the_encoding_that_it_declares_or_not_at_all() -> None:
    latin = '<meta charset="ISO-8859-1"><p>caf\xe9 \x93ok\x94'.encode("latin-1")
    assert extract_text("page", latin) == "café “ok”"
    assert extract_text("page", "<p>café".encode("utf-16")) == "café"
    assert extract_text("page", '<?xml version="1.0" encoding="gb2312"?><p>囧镕'.encode("gbk")) == "囧镕"
    assert extract_text("xml", '<?xml version="1.0" encoding="gb2312"?><p>你好</p>'.encode("gb2312")) == "你好"
    with pytest.raises(RecordError, match="invalid UTF-8"):
        extract_text("page", b"<p>caf\xe9")
    with pytest.raises(RecordError, match="page that is not in its declared encoding"):
        extract_text("page", b'<meta charset="UTF-8"><p>caf\xe9')


def test_an_article_of_which_only_a_section_was_found_is_taken_whole_and_any_other_as_it_was_found() -> None:
    first, second = ("".join(f"<p>Goose {n} of the {part} pond is <i>grey</i>.</p>" for n in range(9)) for part in "ab")
    comments = "<div id='comments'>" + "<p>I have a goose too, and many words to say of it.</p>" * 90 + "</div>"
    found = page(first)

    whole = whole_article(found, f"<article><div>{first}</div><div>{second}</div>{comments}</article>")

    assert whole == page(first + second)
    assert whole_article(found, f"<article>{first}{comments}</article>") == found
    assert whole_article(found, f"<article>{second}{second}{second}</article>") == found
    assert whole_article(found, f"<div>{first}{second}</div>") == found


def test_markup_that_nests_without_end_is_read() -> None:
    assert html_text("<span><table><tr><td>" * 5_000 + "deep") == "deep"
    assert xml("<a><b>" * 20_000 + "deep" + "</b></a>" * 20_000) == "deep"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("<doc><p>He was <i>very</i> happy.</p><p>a\n    b</p></doc>", ["He was very happy.", "a b"]),
        ("<rows><row1><id>1</id><name>x</name></row1></rows>", ["1", "x"]),
        ("<t><line><em>all</em> <b>marked</b></line><line>plain</line></t>", ["all marked", "plain"]),
        ("<n:doc xmlns:n='urn:x'><n:thing>some <n:odd>odd</n:odd> text</n:thing></n:doc>", ["some odd text"]),
        ("<cesDoc><cesHeader>no</cesHeader><div><seg>In the\n beginning</seg><seg>And</seg></div></cesDoc>", [
            "In the beginning", "And"]),
        ("<usx><para><verse number='1'/>In the. <verse number='2'/>And the.</para></usx>", ["In the.", "And the."]),
        ("<book><para>Type:<programlisting>$ ls\n  a</programlisting>then</para></book>", [
            "Type:", "$ ls", "  a", "then"]),
        ("<article><front><journal-meta>J</journal-meta><article-meta><article-id>9</article-id><title-group>"
         "<article-title>On <italic>E.</italic></article-title></title-group></article-meta></front><body><p>See"
         "<xref>[1]</xref>, it<xref ref-type='fn'>2</xref> (in <xref ref-type='bibr'>3</xref>).</p><code>a\n b</code>"
         "</body></article>", ["On E.", "See[1], it[2] (in 3).", "a", " b"]),
        ("<corpus><s><w>He</w> <w>ran</w><pc>.</pc></s><s><w>So</w></s></corpus>", ["He ran.", "So"]),
        ("<doc xml:space='preserve'>a\n  b</doc>", ["a", "  b"]),
        ('<!DOCTYPE p PUBLIC "-//X//DTD" "x.dtd"><p>caf&eacute;&nbsp;&lambda;</p>', ["café\u00a0λ"]),
        ('<html xmlns="http://www.w3.org/1999/xhtml"><body><p>a <i>b</i></p></body></html>', ["a b"]),
    ],
)  # fmt: skip
def test_xml_has_a_line_for_each_element_that_holds_text_and_parts_of_it_run_on(text: str, lines: list[str]) -> None:
    assert xml(text).split("\n") == lines


def test_tei_keeps_verse_and_speakers_and_leaves_out_its_header_and_what_was_corrected() -> None:
    assert xml(TEI).split("\n") == [
        "Act One",
        "He read Emma at breakfast, and said:",
        "A novel by Austen.",
        "O for a Muse of fire",
        "that would ascend",
        "and left.",
        "Nora.",
        "Come (softly) in.",
        "one",
        "two",
        "a\tb",
    ]


def test_a_verse_of_a_bible_is_a_line(test_data: Path) -> None:
    source = (test_data / "languages" / "Zulu-NT.xml").read_text()
    lines = xml(source).split("\n")

    assert lines[0].startswith("Incwadi yokuzalwa kukaJesu") and len(lines) == source.count('type="verse"')
    assert not any(line != line.strip() or "  " in line for line in lines)


def test_a_book_s_chapters_run_on_in_reading_order_without_its_navigation() -> None:
    pages = {
        "b": "<p>He was <i>very</i>\n  happy<a epub:type='noteref' href='n#a'>1</a>.</p><nav>Contents</nav><pre/>",
        "a": "<h1>One</h1><p>End.</p>",
        "n": "<aside epub:type='footnote'>A note.</aside>",
        "toc": "<p>One ... 5</p>",
    }
    guide = '<guide><reference type="toc" href="toc.xhtml"/></guide>'
    last = '<itemref idref="n" linear="no"/>'
    picture = '<item id="i" href="i.svg" media-type="image/svg+xml"/>'

    text = extract_text("epub", book(pages, last.join(("<spine>", spine("toc", "a", "i", "b")[7:])) + guide, picture))

    assert text == "One\nEnd.\n\nHe was very happy[1].\n\nA note."


def test_a_book_of_version_3_is_read_without_its_contents_page() -> None:
    nav = '<item id="v" href="v.xhtml" properties="nav" media-type="application/xhtml+xml"/>'

    text = extract_text("epub", book({"a": "<p>Text.</p>"}, spine("v", "a"), nav, O__v__xhtml="<p>Contents</p>"))

    assert text == "Text."


@pytest.mark.parametrize(
    ("names", "manifest", "more", "reason"),
    [
        (("a", "gone"), "", {}, "EPUB that lacks a listed chapter"),
        (("a", "b"), '<item id="b" href="b.xhtml"/>', {}, "EPUB that lacks a listed chapter"),
        (
            ("a", "b"),
            '<item id="b" href="b.xhtml"/>',
            {"O__b.xhtml": " " * (16 * 2**20 + 1)},
            "EPUB with a chapter of more than 16 MiB",
        ),
        (("a",), "", {"META-INF__encryption.xml": '<e><CipherReference URI="O/a.xhtml"/></e>'}, "encrypted EPUB"),
    ],
)
def test_a_book_of_which_a_chapter_cannot_be_read_is_told(
    names: tuple[str, ...], manifest: str, more: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RecordError, match=reason):
        extract_text("epub", book({"a": "<p>Text.</p>"}, spine(*names), manifest, **more))


ANSWERS = [f"The {thing} costs {10 + n} euros and is sent to you within {n + 2} days." for n, thing in enumerate(
    ("lamp", "sofa", "teapot", "bike", "drum", "clock", "ladder", "kettle"))]  # fmt: skip


@pytest.mark.parametrize(
    "form",
    [
        "<details><summary>{q}</summary><p>{a}</p></details>",
        "<details><summary><h3>{q}</h3></summary><div>{a}</div></details>",
        "<h2>{q}</h2><p>{a}</p>",
        "<div><h3><button aria-expanded='false'>{q}</button></h3><div><p>{a}</p></div></div>",
        "<dl><dt>{q}</dt><dd>{a}</dd></dl>",
        "<h2>{q}</h2><figure><pre>{a}</pre></figure>",
    ],
)
@pytest.mark.parametrize("around", ["{}", "<article><h1>Prices</h1>{}</article>"])
def test_an_article_keeps_each_question_before_its_answer(form: str, around: str) -> None:
    pytest.importorskip("trafilatura", reason="pip install --editable '.[docs]'")
    questions = [f"What is the price of item {n}?" for n, _ in enumerate(ANSWERS)]
    body = around.format("".join(form.format(q=q, a=a) for q, a in zip(questions, ANSWERS, strict=True)))
    menu = "<nav><button aria-expanded='false'>Menu</button><h2>Other pages</h2><a href='/'>Home</a></nav>"

    text = extract_text("article", f"<html><body>{menu}{body}<footer>Imprint</footer></body></html>".encode())

    said = [line.removeprefix("- ") for line in text.split("\n") if line.strip() and line != "Prices"]
    assert said == [line for pair in zip(questions, ANSWERS, strict=True) for line in pair]


@pytest.mark.parametrize(
    "before",
    [
        "<h3><a href='/other'>Another page</a></h3>",
        "<aside><h3>Related pages</h3></aside>",
        "".join(f"<h4>Other page {n}</h4>" for n in range(9)),
    ],
)
def test_a_heading_of_another_page_is_not_taken_for_one_of_the_article(before: str) -> None:
    pytest.importorskip("trafilatura", reason="pip install --editable '.[docs]'")
    body = "<h2>Prices</h2>" + "".join(f"<p>{answer}</p>" for answer in ANSWERS[:4])
    rest = "".join(f"<p>{answer}</p>" for answer in ANSWERS[4:])

    text = extract_text("article", f"<html><body>{body}{before}{rest}</body></html>".encode())

    assert text.split("\n") == ["Prices", *ANSWERS]


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ("<header><form><label>Search for:</label><input></form></header><main><h1>Title</h1>{}</main>", ["Title"]),
        (
            "<div><button aria-expanded=false aria-controls=m>Menu</button></div><main><h1>Title</h1>{}</main>",
            ["Title"],
        ),
        ("<div><h2>Menu</h2></div><main><h1>Title</h1>{}</main>", ["Title"]),
        ("<header><h2>Site</h2></header><h1>Title</h1>{}", ["Title"]),
        ("<h1>Product</h1><form><label>Quantity</label><input></form>{}", ["Product"]),
        ("<div><h2>We use cookies</h2><button>Fine</button></div>{}", []),
        ("<div><p></p> <h3>Newsletter</h3><input></div>{}", []),
        ("<form><h3>Subscribe</h3><input></form>{}", []),
        ("<main><button aria-expanded=true>Contents</button><h2>Section</h2>{}</main>", ["Section"]),
        ("<form><main><h2>Section</h2>{}</main></form>", ["Section"]),
        ("<div><div><h2>Section</h2></div></div>{}", ["Section"]),
    ],
)
def test_only_headings_right_before_an_article_are_put_there_in_their_order(before: str, kept: list[str]) -> None:
    pytest.importorskip("trafilatura", reason="pip install --editable '.[docs]'")
    body = before.format("".join(f"<p>{answer}</p>" for answer in ANSWERS))

    text = extract_text("article", f"<html><body>{body}</body></html>".encode())

    assert [line.strip() for line in text.split("\n")] in ([*kept, *ANSWERS], ANSWERS)


@pytest.mark.parametrize(
    "nasty", ["Text <label>abc</label> def ", "<h2><div><a href=#x>t</a>", "<h4>q</h4>", "<details><summary><h3>x"]
)
def test_an_article_is_kept_before_markup_that_nests_or_repeats_without_end(nasty: str) -> None:
    pytest.importorskip("trafilatura", reason="pip install --editable '.[docs]'")
    article = "<h2>Prices</h2>" + "".join(f"<p>{answer}</p>" for answer in ANSWERS)

    text = extract_text("article", f"<html><body><main>{article}<p>{nasty * 4000}".encode())

    assert text.split("\n")[: len(ANSWERS) + 1] == ["Prices", *ANSWERS]
