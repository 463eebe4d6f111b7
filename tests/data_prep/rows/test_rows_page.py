"""Every example in docs/rows.md is what happens, and every key has one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cluster.config_loading import parse_yaml, validate
from data_prep.config import SourceConfig
from data_prep.fetch.sources import find_corpus, parts_of
from data_prep.read.parts import Turn, read_part
from data_prep.rows.fields import Fields
from tests.data_prep.reading_rows import all_kept

PAGE = (Path(__file__).parents[3] / "docs" / "rows.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(yaml|json|text)\n(.*?)```", re.DOTALL)


def examples() -> list[tuple[Any, str, str]]:
    """Return the settings, the rows and what is said of each example; it ends with the block of what is said."""
    found, blocks = [], {"yaml": "", "json": "", "text": ""}
    for kind, body in BLOCK.findall(PAGE):
        blocks[kind] += body
        if kind == "text":
            found.append((parse_yaml(blocks["yaml"], "rows.md"), blocks["json"], body.strip()))
            blocks = {"yaml": "", "json": "", "text": ""}
    return found


def as_written(turn: Turn) -> str:
    flag = " (not trained)" if turn.is_trained is False else ""
    return f"{turn.role}{flag}: " + turn.text.replace("\n", "\\n")


@pytest.mark.parametrize(("settings", "rows", "said"), examples())
def test_an_example_says_what_the_page_says(tmp_path: Path, settings: dict[str, Any], rows: str, said: str) -> None:
    path = tmp_path / ("a.json" if "rows" in settings.get("fields", {}) else "a.jsonl")
    path.write_text(rows)
    source = validate(SourceConfig, {"path": str(path), **settings}, "rows.md")

    (part,) = parts_of(0, find_corpus([source], {}).files[0], 2**30)
    documents = all_kept(read_part(part))

    assert "\n\n".join("\n".join(map(as_written, document.turns)) for document in documents) == said


def test_every_key_has_an_example() -> None:
    keys = {key for settings, _, _ in examples() for key in settings}
    names = {name for settings, _, _ in examples() for name in settings.get("fields", {})}

    assert keys == {"fields", "system", "roles", "markers", "paths"}
    assert names == set(Fields.model_fields)
