"""Extract the text of an EPUB e-book, version 2 or 3, in reading order."""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from data_prep.files.bounded_io import RecordError
from data_prep.read.pages.markup import decoded_page, html_text

NOT_TEXT = ("image/", "audio/", "video/", "font/", "text/css", "application/pdf")  # a spine may also list images
NAVIGATION = frozenset({"nav"})  # of a book: table of contents, page list, landmarks
# An HTML parser ignores `/>` on these elements, so they would swallow all that follows; in XHTML it closes them.
ENDED = re.compile(
    r"<(title|script|style|textarea|iframe|noframes|noembed|noscript|xmp|template|pre|nav|rt|rp)\b([^<>]*)/>", re.I
)
CHAPTER_BYTES = 16 * 2**20  # its parse tree takes 30 times as much memory
LACKING = "EPUB that lacks a listed chapter"


@dataclass(frozen=True)
class Item:
    """A file of the book, as its manifest lists it."""

    path: str
    kind: str
    properties: str


def book_chapters(book: zipfile.ZipFile) -> Iterator[str]:
    """Yield the text of each chapter in reading order, auxiliary ones (`linear="no"`) last.

    Raises RecordError for a book that is encrypted or lacks a listed chapter.
    """
    package = package_path(book)
    spine = spine_of(ElementTree.fromstring(book.read(package)), posixpath.dirname(package))
    names = {name.casefold(): name for name in book.namelist()}  # Windows tools may change the case of names
    locked = encrypted_paths(book)
    for item in spine:
        name = names.get(item.path.casefold())
        if name is None:
            raise RecordError(LACKING)
        if name in locked:
            raise RecordError("encrypted EPUB")
        if book.getinfo(name).file_size > CHAPTER_BYTES:
            raise RecordError(f"EPUB with a chapter of more than {CHAPTER_BYTES >> 20} MiB")
        page = decoded_page(book.read(name))
        yield html_text(ENDED.sub(r"<\1\2></\1>", page), NAVIGATION)


def package_path(book: zipfile.ZipFile) -> str:
    container = ElementTree.fromstring(book.read("META-INF/container.xml"))
    return next(element.attrib["full-path"] for element in named(container, "rootfile"))


def spine_of(package: Element, folder: str) -> list[Item]:
    """Return the pages of a package in reading order, without its table of contents."""

    def path_of(href: str) -> str:
        return posixpath.normpath(posixpath.join(folder, unquote(urlsplit(href).path)))

    items = {
        item.attrib["id"]: Item(path_of(item.attrib["href"]), item.get("media-type", ""), item.get("properties", ""))
        for item in named(package, "item")
    }
    references = sorted(named(package, "itemref"), key=lambda reference: reference.get("linear") == "no")
    if any(reference.attrib["idref"] not in items for reference in references):
        raise RecordError(LACKING)
    listed = dict.fromkeys(items[reference.attrib["idref"]] for reference in references)
    pages = [item for item in listed if not item.kind.startswith(NOT_TEXT)]
    contents = {
        path_of(place.attrib["href"])
        for place in named(package, "reference")  # version 2's guide; a fragment means only part of a page
        if place.get("type") == "toc" and "#" not in place.attrib["href"]
    }
    return [item for item in pages if "nav" not in item.properties.split() and item.path not in contents] or pages


def encrypted_paths(book: zipfile.ZipFile) -> frozenset[str]:
    """Return the paths in the book's list of encrypted files; most list only fonts."""
    if "META-INF/encryption.xml" not in book.namelist():
        return frozenset()
    listed = ElementTree.fromstring(book.read("META-INF/encryption.xml"))
    return frozenset(unquote(element.attrib["URI"]) for element in named(listed, "CipherReference"))


def named(tree: Element, name: str) -> Iterator[Element]:
    """Yield the elements of a name in any namespace: version 2 books use several, or none."""
    return tree.iterfind(f".//{{*}}{name}")
