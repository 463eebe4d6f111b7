"""Convert marked-up documents to lines of text: which elements begin a line, run inline, or are skipped."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from data_prep.files.bounded_io import RecordError
from data_prep.read.pages.superscripts import marks_note, raised

Display = Literal["block", "inline", "break", "space", "cell", "row", "note", "preformatted", "skip"]

SPACES = re.compile(r"[ \t\n\r\f]+")  # HTML's definition: a no-break space is kept as intended
BLANKS = re.compile(r" *\n[ \n]*| +")
IDEOGRAPH = (
    "[\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]"  # Chinese and Japanese text has no space where a line ends
)
IDEOGRAPH_BREAK = re.compile(f"(?<={IDEOGRAPH})[ \t]*[\n\r\f][ \t\n\r\f]*(?={IDEOGRAPH})")
INVISIBLE = "\u200b\u2060\ufeff"


@dataclass(slots=True)
class Frame:
    """An open element: its display, and the output that is set aside until it is closed."""

    display: Display
    blocks: list[str]
    parts: list[str]
    notes: list[str]
    cells: list[list[str]] = field(default_factory=list)


PART_OF_LINE = Frame("inline", [], [], [])


class Flow:
    """Build lines of text from a stream of elements: `open`, `write` and `close` each; `text` returns the result.

    A block is a paragraph, heading or list item: runs of spaces and newlines in its source become one space, and only a
    `break` ends a line in it. The cells of a row are one line separated by tabs, unless a cell holds several blocks:
    then the table is a page layout, and its blocks follow each other. A note inside a line follows that line.
    """

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.parts: list[str] = []
        self.notes: list[str] = []
        self.frames: list[Frame] = []
        self.preformatted = 0

    def open(self, display: Display) -> None:
        """Begin an element."""
        if display == "inline":
            self.frames.append(PART_OF_LINE)
            return
        if display == "cell" and not (self.frames and self.frames[-1].display == "row"):
            display = "block"
        if display == "note" and not "".join(self.parts).strip():
            display = "block"
        if display not in ("space", "break", "note"):
            self.end_block()
        self.frames.append(Frame(display, self.blocks, self.parts, self.notes))
        if display == "break":
            self.parts.append("\n")
        elif display == "space":
            self.parts.append(" ")
        elif display in ("cell", "note"):
            self.blocks, self.parts, self.notes = [], [], []
        self.preformatted += display == "preformatted"

    def close(self) -> None:
        """End the element that was opened last."""
        frame = self.frames.pop()
        if frame.display in ("inline", "space", "break"):
            return
        self.end_block()
        self.preformatted -= frame.display == "preformatted"
        if frame.display == "row":
            self.blocks += row_of(frame.cells)
        elif frame.display in ("cell", "note"):
            content = self.blocks
            self.blocks, self.parts, self.notes = frame.blocks, frame.parts, frame.notes
            if frame.display == "note":
                self.notes += content
            else:
                self.frames[-1].cells.append(content)

    def write(self, text: str) -> None:
        """Add text to the open element."""
        if not self.preformatted:
            if not text.isascii() and "\n" in text:
                text = IDEOGRAPH_BREAK.sub("", text)
            text = SPACES.sub(" ", text)
        self.parts.append(text)

    def write_mark(self, mark: str) -> None:
        """Add the number or sign of a note, in brackets so that it does not look like part of the word."""
        line = "".join(self.parts[-8:])
        is_in_brackets = line.rfind("[") > line.rfind("]") or line.rfind("(") > line.rfind(")")
        self.write(mark if is_in_brackets or not mark else f"[{mark}]")

    def write_exponent(self, text: str) -> bool:
        """Add a superscript in superscript characters, and return whether it is an exponent of what is before it."""
        exponent = raised(text, "".join(self.parts[-8:]))
        if exponent is not None:
            self.write(exponent)
        return exponent is not None

    def end_block(self) -> None:
        """End the current block, if it has any text, and append its notes."""
        if self.parts:
            text = "".join(self.parts)
            text = text.strip("\n") if self.preformatted else BLANKS.sub(one_blank, text).strip(" \n")
            if text.strip().strip(INVISIBLE):
                self.blocks.append(text)
            self.parts.clear()
        if self.notes:
            self.blocks += self.notes
            self.notes.clear()

    def text(self) -> str:
        """Return all of the text."""
        self.end_block()
        return "\n".join(self.blocks)


def one_blank(match: re.Match[str]) -> str:
    """Return the replacement for a run of spaces and breaks: a space, a newline, or an empty line."""
    return "\n\n"[: match.group().count("\n")] or " "


def row_of(cells: list[list[str]]) -> list[str]:
    """Return a table row as one line, or as separate blocks if a cell has several."""
    if any(len(cell) > 1 for cell in cells):
        return [block for cell in cells for block in cell]
    line = "\t".join(" ".join("".join(cell).split("\n")) for cell in cells).rstrip("\t")
    return [line] if line.strip() else []


BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
DECLARED = re.compile(rb"""<(?:meta|\?xml)\b[^>]*?\b(?:charset|encoding)\s*=\s*["']?([\w.:-]+)""", re.I)
AS_BROWSERS_READ = {  # actual encoding by declared one (encoding.spec.whatwg.org); no page with such a line is UTF-16
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "iso8859-9": "cp1254",
    "tis-620": "cp874",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    **dict.fromkeys(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7"), "utf-8"),
}
DECLARED_WITHIN = 4096  # bytes of a page's beginning


def names(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


HTML_SKIPPED = names("script style noscript template head title iframe rp rt rtc annotation annotation-xml -comment")
HTML_BLOCKS = names(
    "address article aside blockquote body button caption center dd details dialog dir div dl dt fieldset figcaption "
    "figure footer form frameset h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol optgroup option p "
    "search section select summary svg table tbody text tfoot thead ul"
)
NOTE_SIGNS = frozenset(("*", "**", "***", "\u2020", "\u2021", "\u00a7"))
BACK = "\u21a9"  # the arrow back from a note to its reference
ASIDE = names("article aside footer form nav")
ARTICLES = 50  # of a page that are inspected; a page with more is a list of articles
HTML_DISPLAY: dict[str, Display] = {
    **dict.fromkeys(HTML_SKIPPED, "skip"),
    **dict.fromkeys(HTML_BLOCKS, "block"),
    **dict.fromkeys(("pre", "listing", "xmp", "plaintext", "textarea"), "preformatted"),
    **dict.fromkeys(("td", "th"), "cell"),
    "tr": "row",
    "br": "break",
}


def html_text(page: str, skipped: frozenset[str] = frozenset()) -> str:
    """Return all text of a page, without the elements named in `skipped`; elements may nest to any depth."""
    from selectolax.lexbor import LexborHTMLParser

    return text_below(LexborHTMLParser(page).body, skipped)


def article_paragraphs(page: str) -> list[list[str]]:
    """Return the paragraphs of each article element, without those in forms, asides and articles inside it.

    Headings are excluded: the headings of its sections cannot be told from those of lists of other articles.
    """
    from selectolax.lexbor import LexborHTMLParser

    articles = LexborHTMLParser(page).css("article")
    return [
        [text for part in article.css("p") if is_own(part, article) and (text := text_below(part))]
        for article in articles[:ARTICLES]
    ]


def is_own(part: Any, article: Any) -> bool:
    """Return whether a paragraph belongs to an article's text, not to a comment, form or list of other articles."""
    node = part.parent
    while node.mem_id != article.mem_id:
        if node.tag in ASIDE or "comment" in f"{node.attributes.get('id')} {node.attributes.get('class')}":
            return False
        node = node.parent
    return True


def text_below(top: Any, skipped: frozenset[str] = frozenset()) -> str:
    """Return the text of a node and its descendants."""
    flow = Flow()
    node = top
    depth = 0
    while node is not None:
        below = None
        name = str(node.tag)
        if name == "-text":
            flow.write(node.text_content or "")
        elif name == "a" and (mark := note_mark(node)) is not None:
            flow.write_mark(mark)
        elif name == "sup" and is_plain(node) and flow.write_exponent(node.text(deep=True)):
            pass  # it is written, with what is below it
        elif (display := HTML_DISPLAY.get(name, "inline")) != "skip" and name not in skipped:
            if name == "a" and node.prev is not None and node.prev.tag == "a":
                flow.write(" ")  # adjacent links, which the page's style separates
            flow.open(display)
            below = node.child
            if below is None:
                flow.close()
        if below is None:
            node, depth = following(node, depth, flow)
        else:
            node, depth = below, depth + 1
    return flow.text()


def following(node: Any, depth: int, flow: Flow) -> tuple[Any, int]:
    """Return the next node after a node's subtree, or None at the end, and close the elements that end before it."""
    while depth and node.next is None:
        node, depth = node.parent, depth - 1
        flow.close()
    return (node.next if depth else None), depth


def is_plain(sup: Any) -> bool:
    """Return whether a superscript is no reference to a note: neither a link nor named as one."""
    return not marks_note(sup.attributes) and sup.css_first("a") is None


def note_mark(link: Any) -> str | None:
    """Return the mark of a note that a link leads to, "" for a link back from a note, None for other links."""
    holder = link.child if link.child is not None and link.child.tag in ("sup", "span") else link
    if holder.child is None or holder.child.tag != "-text" or holder.child.next is not None:
        return None
    mark = (holder.child.text_content or "").strip()
    if mark.startswith(BACK):
        return ""
    if not mark.isdecimal() and mark not in NOTE_SIGNS:
        return None
    told = link.attributes
    raised = "sup" in (link.parent.tag, holder.tag) and "#" in (told.get("href") or "")
    kind = f"{told.get('epub:type')} {told.get('role')} {told.get('class')}"
    return mark if raised or any(word in kind for word in ("noteref", "footnote", "endnote")) else None


def decoded_page(data: bytes) -> str:
    """Decode a page as UTF-8, or with the encoding that it declares.

    Raises RecordError if neither fits: a guess could silently produce wrong letters.
    """
    mark = next((mark for mark in BYTE_ORDER_MARKS if data.startswith(mark)), b"")
    try:
        return data.decode(BYTE_ORDER_MARKS.get(mark, "utf-8"))
    except UnicodeDecodeError:
        declared = DECLARED.search(data, 0, DECLARED_WITHIN)
    if declared is None:
        raise RecordError("invalid UTF-8")
    return decoded_as(data, declared[1].decode())


def decoded_as(data: bytes, encoding: str) -> str:
    """Decode a page with an encoding, as browsers do. Raises RecordError if it does not fit."""
    try:
        name = codecs.lookup(encoding).name
        return data.decode(AS_BROWSERS_READ.get(name, name))
    except (LookupError, UnicodeDecodeError):
        raise RecordError("page that is not in its declared encoding") from None
