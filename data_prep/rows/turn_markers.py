"""Split conversations written as one text, with a marker at the beginning of each turn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from data_prep.documents import Turn
from data_prep.files.bounded_io import RecordError
from data_prep.rows.fields import PLACEHOLDER
from data_prep.rows.roles import known_role

Markers = tuple[tuple[str, tuple[str, ...]], ...]  # (role, beginnings of its turns); 'ignore': removed from the text

IGNORE = "ignore"
HH = (("user", ("\n\nHuman:",)), ("assistant", ("\n\nAssistant:",)))
STYLES: tuple[Markers, ...] = (  # proposed for texts that contain them, the more specific first
    HH,
    (("system", ("<|system|>",)), ("user", ("<|user|>",)), ("assistant", ("<|assistant|>",)), (IGNORE, ("</s>",))),
    (
        ("system", ("<|im_start|>system\n",)),
        ("user", ("<|im_start|>user\n",)),
        ("assistant", ("<|im_start|>assistant\n",)),
        (IGNORE, ("<|im_end|>",)),
    ),
    (
        ("system", ("<<SYS>>",)),
        ("user", ("[INST]", "<</SYS>>")),
        ("assistant", ("[/INST]",)),
        (IGNORE, ("<s>", "</s>")),
    ),
    (
        ("system", ("<|start_header_id|>system<|end_header_id|>",)),
        ("user", ("<|start_header_id|>user<|end_header_id|>",)),
        ("assistant", ("<|start_header_id|>assistant<|end_header_id|>",)),
        (IGNORE, ("<|begin_of_text|>", "<|eot_id|>")),
    ),
    (
        ("user", ("<start_of_turn>user\n",)),
        ("assistant", ("<start_of_turn>model\n",)),
        (IGNORE, ("<end_of_turn>", "<bos>")),
    ),
    (("user", ("<\uff5cUser\uff5c>",)), ("assistant", ("<\uff5cAssistant\uff5c>",))),
    (("user", ("### Instruction:",)), ("assistant", ("### Response:",))),
    (("user", ("### Human:",)), ("assistant", ("### Assistant:",))),
    (("user", ("### User:",)), ("assistant", ("### Assistant:",))),
    (("user", ("\nHuman:",)), ("assistant", ("\nAssistant:",))),
    (("user", ("\nUSER:",)), ("assistant", ("\nASSISTANT:",))),
    (("user", ("\nUser:",)), ("assistant", ("\nAssistant:",))),
    (("user", ("\nUser:",)), ("assistant", ("\nBot:",))),
    (("user", ("\nQ:",)), ("assistant", ("\nA:",))),
)

ENDS = ("<|endoftext|>", "<|eot_id|>", "</s>", "<s>")  # end markers of turns or texts, from common tokenizers
CAPITALS = re.compile(r"^([A-Z][A-Z]+(?:[ _][A-Z]+){0,2}):", re.MULTILINE)  # FUNCTION RESPONSE:


def marked_turns(text: str, markers: Markers) -> Iterator[Turn]:
    """Yield the turns of a text; the text before the first marker is a system turn.

    A marker that begins with a newline also matches at the beginning of the text. Raises RecordError if the text
    contains no marker.
    """
    roles, ignored = parts_of(markers)
    for unwanted in ignored:
        text = text.replace(unwanted, "")
    pieces = split(text, tuple(roles))
    before = pieces[0].strip()
    if len(pieces) == 1:
        raise RecordError("none of the markers in the text")
    if before:
        yield Turn("system", before)
    said = [(roles[mark], piece.strip()) for mark, piece in zip(pieces[1::2], pieces[2::2], strict=True)]
    for (role, piece), following in zip(said, [*(role for role, _ in said[1:]), None], strict=True):
        if not piece and role == "user" and following == "system":
            continue  # [INST] <<SYS>>: a system turn inside the user's turn
        if not piece and role == "assistant":
            raise RecordError("a marker with nothing after it")
        yield Turn(role, piece)


@lru_cache(maxsize=64)
def parts_of(markers: Markers) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the role of each marker, and the ignored texts."""
    roles = {mark: role for role, marks in markers if role != IGNORE for mark in marks}
    return roles, next((marks for role, marks in markers if role == IGNORE), ())


@lru_cache(maxsize=64)
def pattern_of(marks: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that finds the markers, the longest first; one that begins with a newline may begin the text."""
    longest = sorted(marks, key=len, reverse=True)
    first = (rf"\A\s*{re.escape(mark.lstrip())}" for mark in longest if mark.startswith("\n"))
    return re.compile("|".join([*first, *map(re.escape, longest)]))


def split(text: str, marks: tuple[str, ...]) -> list[str]:
    """Split a text at its markers: text, marker, text, marker, text."""
    found = list(pattern_of(marks).finditer(text))
    plain = {mark.strip(): mark for mark in marks}
    ends = [0, *(match.end() for match in found)]
    starts = [*(match.start() for match in found), len(text)]
    pieces = [text[end:start] for end, start in zip(ends, starts, strict=True)]
    result = [pieces[0]]
    for match, piece in zip(found, pieces[1:], strict=True):
        result += [plain[match.group().strip()], piece]
    return result


def has_marks(text: str, markers: Markers) -> bool:
    """Return whether a text contains marked turns of both user and assistant."""
    try:
        roles = [turn.role for turn in marked_turns(text, markers)]
    except RecordError:
        return False
    return "assistant" in roles and "user" in roles


def with_shown(style: Markers, texts: Sequence[str]) -> Markers:
    """Return a style extended by what the texts contain: end markers to ignore, words in capitals that begin a line.

    Words that are not clearly a system's or a tool's go under a placeholder: the user decides whether they speak.
    """
    found = {role: list(marks) for role, marks in style}
    named = {mark.strip() for marks in found.values() for mark in marks}
    for word in dict.fromkeys(word for text in texts for word in CAPITALS.findall(text)):
        if f"{word}:" not in named:
            found.setdefault(plain_role(word, texts) or PLACEHOLDER, []).append(f"\n{word}:")
    ends = [end for end in ENDS if end not in named and any(end in text for text in texts)]
    if ends:
        found.setdefault(IGNORE, []).extend(ends)
    return tuple((role, tuple(marks)) for role, marks in found.items())


def plain_role(word: str, texts: Sequence[str]) -> str | None:
    """Return the role of a word in capitals, if it is certain: an answer may also contain FUNCTION: or SYSTEM:."""
    role = known_role(word.replace(" ", "_"))
    is_plain = (role == "tool" and not word.isalpha()) or (
        role == "system" and any(text.lstrip().startswith(f"{word}:") for text in texts)
    )
    return role if is_plain else None
