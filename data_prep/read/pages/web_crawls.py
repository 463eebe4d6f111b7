"""Read the pages in a web crawl's WARC file, or the texts in its WET file, with warcio."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from data_prep.files.bounded_io import DOCUMENT_BYTES, TOO_LONG, DamageError, RecordError
from data_prep.read.pages.extraction import extract_text, limit_of

HTML_TYPES = {"text/html", "application/xhtml+xml"}
ANSWERS = {"response", "resource"}
TEXTS = {"conversion"}  # in WET files: text that was extracted before


def read_crawl(stream: BinaryIO, html: str) -> Iterator[bytes | str | RecordError]:
    """Yield the text of each server response, or why it has none; requests and metadata are not counted.

    `html` says how pages are read. Raises RecordError where the file is damaged.
    """
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    if not stream.peek(5).startswith(b"WARC/"):  # type: ignore[attr-defined]
        raise RecordError("damaged WARC")
    # The iterator must not parse HTTP headers: it takes empty ones for the end of the file.
    records = ArchiveIterator(stream, no_record_parse=True)
    try:
        for record in records:
            if record.rec_type in ANSWERS | TEXTS:
                yield text_of(record, "page" if html == "plain" else "article")
    except ArchiveLoadFailed:
        raise RecordError("damaged WARC") from None
    for _ in range(records.err_count):
        yield RecordError("WARC: record of wrong length")
    if stream.read(1):  # raises if damage looked like the end
        raise RecordError("damaged WARC")


def text_of(record: Any, kind: str) -> bytes | str | RecordError:
    """Return a record's text, or why it has none."""
    try:
        headers = record.rec_headers
        if record.rec_type == "response":
            headers = record.http_headers = http_headers(record)
            if headers.get_statuscode() != "200":
                raise RecordError(f"WARC: status {headers.get_statuscode()[:3]}")
        media, _, parameters = str(headers.get_header("Content-Type") or "").lower().partition(";")
        charset = parameters.partition("charset=")[2].partition(";")[0].strip(" \"'")
        if media.strip() == "text/plain":
            return as_utf8(payload(record, DOCUMENT_BYTES), charset)
        if media.strip() not in HTML_TYPES:
            raise RecordError(f"WARC: {media.partition('/')[0].strip() or 'unnamed'} file, not a page")
        return extract_text(kind, as_utf8(payload(record, limit_of(kind)), charset))
    except DamageError:
        raise
    except RecordError as objection:
        return objection


def http_headers(record: Any) -> Any:
    """Return the headers of a server's response."""
    from warcio.bufferedreaders import BufferedReader
    from warcio.statusandheaders import StatusAndHeadersParser

    try:
        headers = StatusAndHeadersParser(["HTTP/"], verify=False).parse(record.raw_stream)
    except EOFError:
        raise RecordError("WARC: empty response") from None
    packing = str(headers.get_header("Content-Encoding") or "identity").lower()
    if packing not in (*BufferedReader.get_supported_decompressors(), "identity", "x-gzip"):
        raise RecordError(f"WARC: page compressed as {packing[:20]}")
    return headers


def payload(record: Any, limit: int) -> bytes:
    """Return a record's content, decompressed according to its HTTP headers."""
    try:
        data = bytes(record.content_stream().read(limit + 1))
        if len(data) <= limit and not record.raw_stream.read(1) and getattr(record.raw_stream, "limit", 0) > 0:
            raise RecordError("WARC: page that ends early")
    except RecordError:
        raise
    except Exception as error:  # noqa: BLE001  # decompressors raise anything on unknown data; the page is counted
        raise RecordError(f"WARC: damaged page ({type(error).__name__})") from None
    if len(data) > limit:
        raise RecordError(TOO_LONG if limit == DOCUMENT_BYTES else f"page of more than {limit >> 20} MiB")
    return data


def as_utf8(data: bytes, charset: str) -> bytes:
    """Return text as UTF-8, decoded with the server's `charset`; unchanged if that does not fit."""
    try:
        return data.decode(charset or "utf-8").encode()
    except (LookupError, UnicodeError):
        return data
