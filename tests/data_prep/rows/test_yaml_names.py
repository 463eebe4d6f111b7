"""The names of speakers and columns that are proposed as YAML are read as these names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config_loading import parse_yaml
from data_prep.rows.field_proposals import joined, quoted_path
from data_prep.rows.roles import line_to_write, quoted

OTHER_THAN_TEXT = "True 1e5 NULL 0x1F 2024-01-01 2024-02-30 ~ null 1_000 -1 -_ 0x_ .inf .NaN 2.5 0b1 1__0"
TEXTS = "yes no on Anna speaker-1 Größe 2nd a.b"
SURPRISING = (
    "",
    " ",
    "a: b",
    "#",
    "*",
    "a\x85b",
    "a\u2028b",
    "a\x7f",
    "\ufeffa",
    "😀\u200d😀",
    "\ud800",
    "a{b}",
    "'",
    '"',
)


@given(st.text(st.characters(), max_size=12))
def test_any_name_is_read_back_as_itself(name: str) -> None:
    assert read_back(name) == [name] * 3


@pytest.mark.parametrize("name", [*OTHER_THAN_TEXT.split(), *TEXTS.split(), *SURPRISING])
def test_a_name_that_yaml_reads_as_a_number_a_date_or_nothing_is_read_back_as_itself(name: str) -> None:
    assert read_back(name) == [name] * 3


def read_back(name: str) -> list[str]:
    """Return a name as YAML reads it: a speaker's, a column's, and a speaker's in the line that is proposed."""
    proposal = line_to_write([name, "the other"], [])
    lines = ["roles:", f"  {quoted(name)}: user", f"column: {quoted_path(name)}", proposal]
    assert all(line.splitlines() == [line] for line in lines)
    first, proposed = parse_yaml("\n".join(lines[:3]), ""), parse_yaml(proposal, "")["roles"]
    return [*first["roles"], first["column"], *(speaker for speaker, role in proposed.items() if role == "user")]


def test_only_what_needs_it_is_quoted() -> None:
    assert [name for name in TEXTS.split() if quoted(name) != name] == ["a.b"]
    assert joined([("prompt", "a.b", ""), ("completion", "null", "")]) == 'fields: {prompt: a.b, completion: "null"}'
