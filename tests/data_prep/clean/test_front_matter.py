"""Front matter of Markdown files is removed and counted; what only looks like it stays."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.clean.front_matter import without_front_matter
from data_prep.config import CleaningConfig
from data_prep.encode.encoding import Encoder
from data_prep.encode.usable_records import read_usable
from data_prep.fetch.sources import parts_of
from tests.data_prep.reading_rows import corpus_of

POST = "# The port\n\nIt is deep.\n"
Prepared = Callable[..., tuple[list[bytes], dict[str, int]]]


@pytest.fixture
def prepared(tmp_path: Path, encoder_with: Callable[..., Encoder]) -> Prepared:
    """Return the usable texts of a file, and what was changed in them."""

    def read(name: str, text: str, **settings: Any) -> tuple[list[bytes], dict[str, int]]:
        (tmp_path / name).write_bytes(text.encode())
        (part,) = parts_of(0, corpus_of(tmp_path / name).files[0], 2**20)
        found = read_usable(part, encoder_with(None), CleaningConfig(**settings))
        return found.texts or [], found.changed

    return read


@pytest.mark.parametrize(
    "front",
    [
        "---\ntitle: The port\n---\n",
        '---\ntitle: "The port"\ndate: 2020-13-45\ntags:\n  - a\n---\n\n',
        "---\r\ntitle: a\r\ntitle: b\r\ndate: c\r\n...\r\n\r\n",
        '+++\ntitle = "The port"\n+++\n',
        "---\n# made by hand\ntitle: The port\n\ntext: |\n  One.\n\n  Two.\n---\n",
        "---\ntitle: &a x\nslug: &a y\n\n---\n",
        "---\ntitle: x\n\n---\n",
        "---\n\"title\": x\nlast.edit : {at: '12:00'}\n---\n",
    ],
)
def test_front_matter_is_removed_from_markdown_and_counted(prepared: Prepared, front: str) -> None:
    trained = [POST.rstrip("\n").encode()]

    assert prepared("a.md", front + POST) == (trained, {"front matter removed": 1})
    assert prepared("a.md", "\ufeff" + front + POST) == (trained, {"front matter removed": 1})
    assert prepared("a.md", front + POST, front_matter=False)[1] == {}
    assert prepared("a.txt", front + POST)[1] == {}


@pytest.mark.parametrize(
    "text",
    [
        f"---\n\n{POST}\n---\n\nThe end.\n",
        "---\nA rule, then prose.\n---\nMore prose.\n",
        "---\n- a\n- list\n---\n",
        "---\ntitle: never closed\n\n# The port\n",
        "---\n---\nText.\n",
        "--- \ntitle: [broken\n---\nText.\n",
        f"{POST}---\ntitle: not at the beginning\n---\n",
        "----\ntitle: a longer rule\n----\n",
        "---\n%YAML 1.3\n---\nText",
        "---\na: b\n%YAML 1.3\n---\nText",
        "+++\na = " + "1" * 5000 + "\n+++\nText",
        "---\n\nChapter one: the beginning\n\n---\n\nText",
        "---\n\nChapter: the beginning\n\n---\n\nText",
        "---\nDear reader:\n\n  This is the text.\n\n---\n\nNext.",
        "---\nReader:\n\n  This is the text.\n\n---\n\nNext.",
        "---\n# A heading\n\nText: hello\n---\nNext",
        "---\r\n# A heading\r\n\r\nText: hello\r\nMore: hello\r\n---\r\nNext",
        "---\nQ: What is it?\nA: A thing.\n---\nQ: And that?\nA: Another.\n---\n",
        "---\nQ: What is it?\nA: A thing.\n---\n\nQ: And that?\nA: Another.\n",
        "---\nUser: Hello\n---\nBot: Hello\n---\nUser: Bye\n",
        "---\nExample: text\n\n...\nMore",
        "---\n? [a, b]\n: c\n---\nText",
        "---\nkey: *unknown\n---\nText",
    ],
)
def test_a_text_that_only_looks_as_if_it_had_front_matter_stays(text: str) -> None:
    assert without_front_matter(text) == text


@pytest.mark.parametrize(
    ("begins", "mark"),
    [("+++\na", ".a"), *itertools.product(["", "a: ", "a:\n  - ", "+++\na = "], ["[", "{a: ", "- ", "? "])],
)
def test_front_matter_that_nests_without_end_is_a_text(begins: str, mark: str) -> None:
    rule = "+++" if begins.startswith("+++") else "---"
    text = f"{rule}\n{begins.removeprefix('+++')}{mark * (60_000 // len(mark))}\n{rule}\nText"

    assert without_front_matter(text) == text


@pytest.mark.filterwarnings("error")
def test_an_anchor_that_comes_twice_in_front_matter_is_not_warned_of() -> None:
    assert without_front_matter("---\na: &x 1\nb: &x 2\n---\nText") == "Text"


def test_only_the_first_part_of_a_markdown_file_may_begin_with_front_matter(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(POST)
    (part,) = parts_of(0, corpus_of(tmp_path / "a.md").files[0], 2**20)

    assert part.begins_markdown
    assert not replace(part, start=1).begins_markdown
