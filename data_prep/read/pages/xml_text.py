"""The text of an XML document: TEI, DocBook, JATS and their like by the names of their elements, others by their form.

An element that has text beside its elements is a line, and they are parts of it; one that holds nothing but elements
has each on a line of its own. Names count without their namespaces and in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from data_prep.read.pages.markup import Display, Flow, names

HEADERS = ("teiheader", "cesheader", "journal-meta")  # they tell of the document and are none of its text
VARIANTS = ("rdg", "fw")  # TEI: what other witnesses read; the page's running head, number and catchword
PARAGRAPHS = names("p para simpara head l s speaker title subtitle")  # what is in them runs on
BLOCKS = names(  # also within a paragraph
    "p para simpara head l lg sp speaker div section sec list itemizedlist orderedlist variablelist simplelist ul ol "
    "item listitem list-item li table blockquote poem stanza verse v"
)
TYPOGRAPHY = names(
    "b bold em emph emphasis hi i italic roman sc small span strike strong styled-content sub subscript sup "
    "superscript tt u underline w pc"
)
DISPLAY: dict[str, Display] = {
    **dict.fromkeys((*HEADERS, *VARIANTS, "script", "style"), "skip"),
    **dict.fromkeys(BLOCKS, "block"),
    **dict.fromkeys(("programlisting", "screen", "literallayout", "preformat", "pre", "eg"), "preformatted"),
    **dict.fromkeys(("td", "th", "cell", "entry"), "cell"),
    **dict.fromkeys(("tr", "row"), "row"),
    **dict.fromkeys(("note", "footnote", "fn"), "note"),
    **dict.fromkeys(("lb", "pb", "cb"), "space"),  # a line, page or column of the print ends
    **dict.fromkeys(("br", "break"), "break"),
}
ARTICLE_TEXT = ("title-group", "abstract", "trans-abstract")  # of JATS' article-meta
NOTE_KINDS = ("fn", "bibr", "table-fn")  # of JATS' cross references
REPLACED = ("sic", "orig", "abbr")  # TEI's choice has corr, reg or expan beside them, which are read
SPACE = "{http://www.w3.org/XML/1998/namespace}space"


def xml_text(root: Element) -> str:
    """Return all text of a document but its header; elements may nest as deep as they like."""
    flow = Flow()
    flow.open("preformatted" if root.get(SPACE) == "preserve" else "block")
    flow.write(root.text or "")
    # of each open element: itself, what of it is still to come, and whether its elements are parts of a line
    opened: list[tuple[Element, Iterator[Element], bool]] = [(root, iter(root), runs_on(root, inherited=False))]
    while opened:
        parent, children, in_line = opened[-1]
        child = next(children, None)
        if child is None:
            opened.pop()
            flow.close()
            if parent.tail and opened:
                flow.write(parent.tail)
            continue
        if is_note_mark(child):
            flow.write_mark(child.text or "")
            flow.write(child.tail or "")
            continue
        display = display_of(child, name_of(parent), in_line=in_line)
        if display == "skip":
            flow.write(child.tail or "")
            continue
        flow.open(display)
        if child.text:
            flow.write(child.text)
        opened.append((child, iter(child), len(child) > 0 and runs_on(child, inherited=display == "inline")))
    return flow.text()


def display_of(element: Element, parent: str, *, in_line: bool) -> Display:
    """Return how an element is shown, in a line or among lines."""
    name = name_of(element)
    if (parent == "article-meta" and name not in ARTICLE_TEXT) or (parent == "choice" and name in REPLACED):
        return "skip"
    if parent == "alternatives" and name == "tex-math":  # a program for TeX, beside the formula as MathML
        return "skip"
    if not in_line and (element.get(SPACE) == "preserve" or name == "code"):
        return "preformatted"
    if name == "ab" and "code" in element.get("type", ""):
        return "preformatted"
    known = DISPLAY.get(name)
    if known == "space" and element.get("break") == "no":
        return "inline"
    return known or ("inline" if in_line else "block")


def is_note_mark(element: Element) -> bool:
    """Return whether an element is the number of a note or a reference, without brackets of its own."""
    return element.get("ref-type") in NOTE_KINDS and len(element) == 0 and (element.text or "").isdecimal()


def runs_on(element: Element, *, inherited: bool) -> bool:
    """Return whether the elements in one are parts of a line."""
    if inherited or name_of(element) in PARAGRAPHS or has_text(element.text):
        return True
    within = {name_of(child) for child in element}
    return any(has_text(child.tail) for child in element) or (bool(within) and within <= TYPOGRAPHY)


def has_text(text: str | None) -> bool:
    return text is not None and not text.isspace() and text != ""


def name_of(element: Element) -> str:
    return element.tag.rpartition("}")[2].lower()
