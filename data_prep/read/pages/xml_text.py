"""Extract the text of an XML document: elements of TEI, DocBook, JATS and similar by name, others by their content.

An element that contains text next to elements is a line, and the elements are inline; an element that contains only
elements puts each on a line of its own. Names are compared without namespace and case.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from data_prep.read.pages.markup import Display, Flow, names

HEADERS = ("teiheader", "cesheader", "journal-meta")  # metadata about the document, not its text
VARIANTS = ("rdg", "fw")  # TEI: variant readings; running heads, page numbers and catchwords
PARAGRAPHS = names("p para simpara head l s speaker title subtitle")  # their elements are inline
BLOCKS = names(  # also inside a paragraph
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
    **dict.fromkeys(("lb", "pb", "cb"), "space"),  # end of a printed line, page or column
    **dict.fromkeys(("br", "break"), "break"),
}
ARTICLE_TEXT = ("title-group", "abstract", "trans-abstract")  # of JATS' article-meta
NOTE_KINDS = ("fn", "bibr", "table-fn")  # of JATS' cross references
REPLACED = ("sic", "orig", "abbr")  # a TEI choice has corr, reg or expan next to them, which is read instead
SPACE = "{http://www.w3.org/XML/1998/namespace}space"


def xml_text(root: Element) -> str:
    """Return all text of a document except its header; elements may nest to any depth."""
    flow = Flow()
    flow.open("preformatted" if root.get(SPACE) == "preserve" else "block")
    flow.write(root.text or "")
    # per open element: itself, its remaining children, and whether they are inline
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
    """Return an element's display, given whether it is inside a line."""
    name = name_of(element)
    if (parent == "article-meta" and name not in ARTICLE_TEXT) or (parent == "choice" and name in REPLACED):
        return "skip"
    if parent == "alternatives" and name == "tex-math":  # TeX source of a formula that is also there as MathML
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
    """Return whether an element is the bare number of a note or reference."""
    return element.get("ref-type") in NOTE_KINDS and len(element) == 0 and (element.text or "").isdecimal()


def runs_on(element: Element, *, inherited: bool) -> bool:
    """Return whether an element's children are inline."""
    if inherited or name_of(element) in PARAGRAPHS or has_text(element.text):
        return True
    within = {name_of(child) for child in element}
    return any(has_text(child.tail) for child in element) or (bool(within) and within <= TYPOGRAPHY)


def has_text(text: str | None) -> bool:
    return text is not None and not text.isspace() and text != ""


def name_of(element: Element) -> str:
    return element.tag.rpartition("}")[2].lower()
