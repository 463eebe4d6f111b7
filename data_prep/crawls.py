"""The pages in a web crawl's WARC file, and the texts in its WET file, by the library warcio."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from data_prep.pages import extract_text, limit_of
from data_prep.streams import DOCUMENT_BYTES, TOO_LONG, ObjectionError, require_whole

HTML_TYPES = {"text/html", "application/xhtml+xml"}
ANSWERS = {"response", "resource"}
TEXTS = {"conversion"}  # of WET files: what somebody extracted before


def read_crawl(stream: BinaryIO, html: str) -> Iterator[bytes | str | ObjectionError]:
    """Yield the text of each answer of a server, or why it is none; requests and notes about the crawl are no records.

    Pages are read as `html` says. Where the file is damaged, raises ObjectionError.
    """
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    try:
        for record in ArchiveIterator(stream):
            if record.rec_type in ANSWERS | TEXTS:
                yield text_of(record, "page" if html == "plain" else "article")
    except ArchiveLoadFailed:
        raise ObjectionError("damaged WARC") from None
    require_whole(stream)


def text_of(record: Any, kind: str) -> bytes | str | ObjectionError:
    """Return the text of a record of a crawl, or why it has none."""
    try:
        status = record.http_headers.get_statuscode() if record.http_headers is not None else "200"
        media = media_type(record)
        if status != "200":
            raise ObjectionError(f"WARC: answer {status[:3]}")
        if media == "text/plain":
            return payload(record, DOCUMENT_BYTES)
        if media not in HTML_TYPES:
            raise ObjectionError(f"WARC: {media.partition('/')[0] or 'no'} file, no page")
        return extract_text(kind, payload(record, limit_of(kind)))
    except ObjectionError as objection:
        return objection


def media_type(record: Any) -> str:
    headers = record.http_headers if record.http_headers is not None else record.rec_headers
    return str(headers.get_header("Content-Type") or "").partition(";")[0].strip().lower()


def payload(record: Any, limit: int) -> bytes:
    """Return a record's content, unpacked as its HTTP headers say."""
    try:
        data = bytes(record.content_stream().read(limit + 1))
    except ObjectionError:
        raise
    except Exception as error:  # noqa: BLE001  # what a stranger's server packed may raise anything; it is counted
        raise ObjectionError(f"WARC: damaged page ({type(error).__name__})") from None
    if len(data) > limit:
        raise ObjectionError(TOO_LONG if limit == DOCUMENT_BYTES else f"page of more than {limit >> 20} MiB")
    return data
