"""The pages in a web crawl's WARC file, and the texts in its WET file, by the library warcio."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from data_prep.files.bounded_io import DOCUMENT_BYTES, TOO_LONG, DamageError, RecordError
from data_prep.read.pages.extraction import extract_text, limit_of

HTML_TYPES = {"text/html", "application/xhtml+xml"}
ANSWERS = {"response", "resource"}
TEXTS = {"conversion"}  # of WET files: what somebody extracted before


def read_crawl(stream: BinaryIO, html: str) -> Iterator[bytes | str | RecordError]:
    """Yield the text of each answer of a server, or why it is none; requests and notes about the crawl are no records.

    Pages are read as `html` says. Where the file is damaged, raises RecordError.
    """
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    if not stream.peek(5).startswith(b"WARC/"):  # type: ignore[attr-defined]
        raise RecordError("damaged WARC")
    # Headers of HTTP are not parsed by the iterator: it takes empty ones for the end of the file.
    records = ArchiveIterator(stream, no_record_parse=True)
    try:
        for record in records:
            if record.rec_type in ANSWERS | TEXTS:
                yield text_of(record, "page" if html == "plain" else "article")
    except ArchiveLoadFailed:
        raise RecordError("damaged WARC") from None
    for _ in range(records.err_count):
        yield RecordError("WARC: record of another length than it says")
    if stream.read(1):  # raises where damage looked like the end
        raise RecordError("damaged WARC")


def text_of(record: Any, kind: str) -> bytes | str | RecordError:
    """Return the text of a record of a crawl, or why it has none."""
    try:
        headers = record.rec_headers
        if record.rec_type == "response":
            headers = record.http_headers = http_headers(record)
            if headers.get_statuscode() != "200":
                raise RecordError(f"WARC: answer {headers.get_statuscode()[:3]}")
        media, _, parameters = str(headers.get_header("Content-Type") or "").lower().partition(";")
        charset = parameters.partition("charset=")[2].partition(";")[0].strip(" \"'")
        if media.strip() == "text/plain":
            return as_utf8(payload(record, DOCUMENT_BYTES), charset)
        if media.strip() not in HTML_TYPES:
            raise RecordError(f"WARC: {media.partition('/')[0].strip() or 'unnamed'} file, no page")
        return extract_text(kind, as_utf8(payload(record, limit_of(kind)), charset))
    except DamageError:
        raise
    except RecordError as objection:
        return objection


def http_headers(record: Any) -> Any:
    """Return the headers of a server's answer."""
    from warcio.bufferedreaders import BufferedReader
    from warcio.statusandheaders import StatusAndHeadersParser

    try:
        headers = StatusAndHeadersParser(["HTTP/"], verify=False).parse(record.raw_stream)
    except EOFError:
        raise RecordError("WARC: empty answer") from None
    packing = str(headers.get_header("Content-Encoding") or "identity").lower()
    if packing not in (*BufferedReader.get_supported_decompressors(), "identity", "x-gzip"):
        raise RecordError(f"WARC: page packed as {packing[:20]}")
    return headers


def payload(record: Any, limit: int) -> bytes:
    """Return a record's content, unpacked as its HTTP headers say."""
    try:
        data = bytes(record.content_stream().read(limit + 1))
        if len(data) <= limit and not record.raw_stream.read(1) and getattr(record.raw_stream, "limit", 0) > 0:
            raise RecordError("WARC: page that ends early")
    except RecordError:
        raise
    except Exception as error:  # noqa: BLE001  # what a stranger's server packed may raise anything; it is counted
        raise RecordError(f"WARC: damaged page ({type(error).__name__})") from None
    if len(data) > limit:
        raise RecordError(TOO_LONG if limit == DOCUMENT_BYTES else f"page of more than {limit >> 20} MiB")
    return data


def as_utf8(data: bytes, charset: str) -> bytes:
    """Return text in UTF-8 that the server says is in `charset`; as it stands if that is not so."""
    try:
        return data.decode(charset or "utf-8").encode()
    except (LookupError, UnicodeError):
        return data
