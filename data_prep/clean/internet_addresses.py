"""E-mail and IP addresses in UTF-8 text.

An e-mail address is read from its @: back over the bytes that may stand in its local part, which bytes.rstrip does at
the speed of memory, and on over its domain. A regular expression that tries every place of a text is ten times slower.
"""

from __future__ import annotations

import ipaddress
import re

Span = tuple[int, int]

LOCAL_BYTES = 64  # RFC 5321, 4.5.3.1
ASCII_LOCAL = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+%-."  # others are a quote's or a URL's
LETTER = rb"[\xc3-\xdf][\x80-\xbf]"  # U+00C0 to U+07FF: of the alphabets that put spaces between their words
LOCAL_END = re.compile(rb"(?:[A-Za-z0-9_+%.'-]|" + LETTER + rb")+\Z")
NAME = rb"(?:[A-Za-z0-9]|" + LETTER + rb"){1,63}"
DOMAIN = re.compile(
    rb"@(?:" + NAME + rb"(?:-{1,3}" + NAME + rb"){0,20}\.){1,8}"
    rb"(?:xn--[A-Za-z0-9-]{2,59}|[A-Za-z]{2,24}|(?:" + LETTER + rb"){2,24})"
    rb"(?![A-Za-z0-9_@]|-[A-Za-z0-9]|" + LETTER + rb")"
)
FILES = re.compile(rb"\.(?:png|jpe?g|gif|svg|webp|ico|css|json|html?|xml|pdf|txt)\Z", re.I)  # icon@2x.png

OCTET = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
IP_V4 = re.compile(rb"(?<![0-9A-Za-z.])" + OCTET + rb"(?:\." + OCTET + rb"){3}(?![0-9A-Za-z]|\.[0-9])")
IP_V6 = re.compile(rb"(?<![0-9A-Za-z:.])[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![0-9A-Za-z:]|\.[0-9])")
IP_V6_GLOBAL = ipaddress.ip_network("2000::/3")

# What says that four numbers are a version, or count the sections of a text: a word before, with others of its kind
# between; the name of a package or product that they are part of; a word or a file's suffix behind.
VERSION_WORDS = (
    rb"versions?|semver|ver\.?|v\.?|releases?|rel\.?|builds?|revisions?|rev\.?|firmware|drivers?|updates?|upgrades?|patch|"
    rb"sections?|sec\.|chapters?|clauses?|paragraphs?|appendix|tables?|figures?|rules?|articles?|oid"
)
VERSION_BEFORE = re.compile(
    rb"(?:(?<![A-Za-z0-9])(?:" + VERSION_WORDS + rb")[\s:=#\"'`(\[*]*(?:(?:is|was|number|no\.|to|from|of)[\s:=]+)?"
    rb"(?:[0-9]+(?:\.[0-9]+)+(?:,|-|\s|and|or|to|through|\xe2\x80[\x93\x94])+)*"
    rb"|[\xa7]\s?|[A-Za-z0-9][A-Za-z]*[_/-]|[=<>~!]=\s?)\Z",
    re.I,
)
VERSION_BEHIND = re.compile(
    rb"(?:\s+(?:#\s?)?(?:[A-Za-z]{1,20}\s)?(?:versions?|releases?|builds?|firmware|drivers?|updates?)(?![A-Za-z])"
    rb"|[.](?:tar|t?gz|zip|exe|msi|deb|rpm|jar|whl|dll|so|nupkg)(?![A-Za-z])|[ (-]{0,2}(?:rc|beta|alpha|snapshot))",
    re.I,
)
CONTEXT_BYTES = 48


def email_spans(text: bytes, begin: int, end: int) -> list[Span]:
    """Return the spans of e-mail addresses whose @ is between `begin` and `end`."""
    spans: list[Span] = []
    at = text.find(b"@", begin, end)
    while at >= 0:
        domain = DOMAIN.match(text, at)
        if domain is not None and (local := local_part(text, at, domain.end())):
            spans.append((at - len(local), domain.end()))
        at = text.find(b"@", at + 1, end)
    return spans


def local_part(text: bytes, at: int, end: int) -> bytes:
    """Return what stands before an @ and can be an address's; nothing if nothing can."""
    head = text[max(0, at - 2 * LOCAL_BYTES) : at]
    local = head[len(head.rstrip(ASCII_LOCAL)) :]
    before = head[-len(local) - 1 : len(head) - len(local)]
    if before and (before >= b"\x80" or before == b"'"):
        wide = LOCAL_END.search(head)
        local = wide.group() if wide is not None else b""
        if text[end : end + 1] == b"'" and not local.startswith(b"'"):  # u'me@x.org' is in quotes, o'neil@x.org a name
            local = local.rpartition(b"'")[2]
        local = local.lstrip(b"'")
    local = local.lstrip(b".")
    if len(local) > LOCAL_BYTES or local.endswith((b".", b"'")) or b".." in local or local == b"git":
        return b""
    return b"" if before == b"@" or FILES.search(text, at, end) else local


def ip_v4_spans(text: bytes, begin: int, end: int) -> list[Span]:
    """Return the spans of public addresses of IPv4 that are not the number of a version or a section."""
    spans = (match.span() for match in IP_V4.finditer(text, begin, end) if is_public_address(match.group()))
    return [span for span in spans if not is_version(text, *span)]


def ip_v6_spans(text: bytes, begin: int, end: int) -> list[Span]:
    """Return the spans of public addresses of IPv6."""
    return [match.span() for match in IP_V6.finditer(text, begin, end) if is_public_address(match.group())]


def is_version(text: bytes, begin: int, end: int) -> bool:
    """Return whether four numbers are of a version, a section or a package, by the text around them."""
    before = text[max(0, begin - CONTEXT_BYTES) : begin]
    return VERSION_BEFORE.search(before) is not None or VERSION_BEHIND.match(text, end) is not None


def is_public_address(value: bytes) -> bool:
    """Return whether an address can be reached on the internet: one of a home network identifies nobody."""
    try:
        address = ipaddress.ip_address(value.decode())
    except ValueError:
        return False
    return address.is_global and not address.is_multicast and (address.version == 4 or address in IP_V6_GLOBAL)
