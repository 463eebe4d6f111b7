"""Extract the text of a web page, an XML file, a PDF, a Word document or an e-book."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from html.entities import html5
from typing import Any
from xml.etree import ElementTree

from data_prep.files.bounded_io import DOCUMENT_BYTES, TOO_LONG, RecordError
from data_prep.read.pages import pdf_text
from data_prep.read.pages.epub import book_chapters
from data_prep.read.pages.markup import article_paragraphs, decoded_page, html_text
from data_prep.read.pages.page_headings import LINES, introduced_lines, unfolded, with_headings
from data_prep.read.pages.superscripts import with_superscripts
from data_prep.read.pages.xml_text import name_of, xml_text

ARTICLE_BYTES = 4 * 2**20  # of HTML for article extraction, which takes 7 s and 80 MiB of memory per MiB of tags
PAGE_BYTES = 16 * 2**20  # of HTML or XML read in full: takes 30 times its size in memory, 12 s if it is all tags
BOOK_BYTES = 256 * 2**20  # of a PDF, Word file or book, mostly images; also the limit when unpacked
ENTITIES = {
    name.rstrip(";"): text for name, text in html5.items()
}  # for documents whose DTD is not available: &nbsp; &eacute;
MUCH_MORE, NEARLY_ALL = 1.8, 0.9  # ratios of word counts, see `whole_article`
PDF_CPU_S = 20  # of CPU time, plus as much per MiB
PDF_MEMORY_BYTES = 4 * 2**30


def extract_text(kind: str, data: bytes) -> str:
    """Return the text of a page. Raises RecordError if it has none or is damaged."""
    try:
        text = str(EXTRACTORS[kind](data))
    except RecordError:
        raise
    except Exception as error:  # noqa: BLE001  # parsers raise anything on unknown files; the file is counted
        raise RecordError(f"damaged {NAMES[kind]} ({type(error).__name__})") from None
    if not text.strip():
        raise RecordError(f"{NAMES[kind]} without text")
    if len(text) > DOCUMENT_BYTES:
        raise RecordError(TOO_LONG)
    return text


def limit_of(kind: str) -> int:
    """Return the maximum size in bytes of a file of this kind."""
    return {"article": ARTICLE_BYTES, "page": PAGE_BYTES, "xml": PAGE_BYTES}.get(kind, BOOK_BYTES)


def article_of(data: bytes) -> str:
    """Return a web page's article, without menus, advertisements and comments."""
    import trafilatura

    try:
        page: str | bytes = decoded_page(data)
    except RecordError:  # no declared encoding, or a wrong one: trafilatura detects it
        page = data
    tree = trafilatura.load_html(page)
    if tree is None:
        return ""
    lines = introduced_lines(unfolded(with_superscripts(tree, LINES)))  # before trafilatura takes the tree apart
    found = trafilatura.extract(tree, include_comments=False, favor_precision=True) or ""
    return with_headings(whole_article(found, page) if isinstance(page, str) else found, lines) if found else ""


def whole_article(found: str, page: str) -> str:
    """Return the extracted article, or all paragraphs of its element if only one section was extracted.

    If a page divides its article into sections, trafilatura extracts only one. To detect this, the extracted words must
    be among the paragraphs' words, and the paragraphs must be much longer: more than the captions and asides that
    trafilatura drops from other articles.
    """
    words = found.split()
    if "<article" not in page or not words:
        return found
    paragraphs = max(map("\n".join, article_paragraphs(page)), key=len, default="")
    whole = paragraphs.split()
    if len(whole) < MUCH_MORE * len(words):
        return found
    is_within = (Counter(words) & Counter(whole)).total() >= NEARLY_ALL * len(words)
    return paragraphs if is_within else found


def page_of(data: bytes) -> str:
    """Return all text of a web page, one line per block."""
    return html_text(decoded_page(data))


def xml_of(data: bytes) -> str:
    """Return all text of an XML document except its header; expat rejects entity expansion attacks."""
    parser = ElementTree.XMLParser()
    parser.entity.update(ENTITIES)
    page = decoded_page(data)
    root = ElementTree.fromstring(page, parser)
    text = html_text(page) if name_of(root) == "html" else xml_text(root)
    if not text.strip() and any(" " in value for element in root.iter() for value in element.attrib.values()):
        raise RecordError("XML with text in attributes only, which are not read: write its elements as JSON lines")
    return text


def pdf_of(data: bytes) -> str:
    """Return the text layer of a PDF, page by page, within limits of time and memory."""
    cpu_s = PDF_CPU_S * (1 + (len(data) >> 20))
    limits = map(str, (cpu_s, PDF_MEMORY_BYTES, DOCUMENT_BYTES))
    done = subprocess.run([sys.executable, "-P", pdf_text.__file__, *limits], input=data, capture_output=True)
    if done.returncode == -signal.SIGXCPU:
        raise RecordError(f"PDF that takes more than {cpu_s} s")
    if done.returncode == pdf_text.OBJECTION:
        raise RecordError(done.stdout.decode())
    if done.returncode != 0:
        raise RecordError(f"damaged PDF (exit code {done.returncode})")
    return done.stdout.decode()


def docx_of(data: bytes) -> str:
    """Return the paragraphs and table rows of a Word document, in order."""
    import docx
    from docx.table import Table

    opened_archive(data)
    lines: list[str] = []
    for block in docx.Document(io.BytesIO(data)).iter_inner_content():
        if isinstance(block, Table):
            lines += ["\t".join(cell.text for cell in row.cells) for row in block.rows]
        else:
            lines.append(block.text)
    return "\n".join(lines)


def epub_of(data: bytes) -> str:
    """Return the chapters of an e-book in reading order."""
    return "\n\n".join(within_limit(book_chapters(opened_archive(data))))


def opened_archive(data: bytes) -> zipfile.ZipFile:
    """Open a document that is a zip file. Raises RecordError if it unpacks to more than BOOK_BYTES."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    if sum(member.file_size for member in archive.infolist()) > BOOK_BYTES:
        raise RecordError(f"unpacks to more than {BOOK_BYTES >> 20} MiB")
    return archive


def within_limit(texts: Iterator[str]) -> Iterator[str]:
    """Yield the texts that are not blank. Raises RecordError once they are too long for one document."""
    total = 0
    for text in texts:
        total += len(text)
        if total > DOCUMENT_BYTES:
            raise RecordError(TOO_LONG)
        if text.strip():
            yield text


EXTRACTORS: dict[str, Callable[[bytes], Any]] = {
    "article": article_of,
    "page": page_of,
    "xml": xml_of,
    "pdf": pdf_of,
    "docx": docx_of,
    "epub": epub_of,
}
NAMES = {"article": "HTML", "page": "HTML", "xml": "XML", "pdf": "PDF", "docx": "DOCX", "epub": "EPUB"}
