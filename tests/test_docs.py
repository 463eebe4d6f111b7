"""The pages and the examples speak of what is there."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from pathlib import Path

import pytest

from launch.arguments import VERBS, parser
from launch.config import RunConfig
from launch.key_reference import reference, sections_in
from launch.saved_config import load_run
from tests.floor_plan import PACKAGES

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in PAGES}


def commands(text: str) -> list[str]:
    """Return the `shardline` commands in a page's blocks of code, continued lines joined, without their comments."""
    blocks = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return re.findall(r"^(?:\$ )?(shardline [^#\n|>]+)", joined, flags=re.MULTILINE)


def keys_of(model: type) -> set[str]:
    """Return the names of all keys of a section and of those in it."""
    found = set(model.model_fields)  # type: ignore[attr-defined]
    for field in model.model_fields.values():  # type: ignore[attr-defined]
        for inner in sections_in(field.annotation):
            found |= keys_of(inner)
    return found


def test_the_reference_is_what_the_schema_says() -> None:
    assert TEXTS["reference.md"] == reference(), "run: python -m launch.key_reference > docs/reference.md"


def test_the_reference_has_every_key() -> None:
    assert keys_of(RunConfig) == set(re.findall(r"^\| `(\w+)` \|", TEXTS["reference.md"], flags=re.MULTILINE))


@pytest.mark.parametrize("page", TEXTS)
def test_a_command_of_a_page_is_understood(page: str) -> None:
    for line in commands(TEXTS[page]):
        words = shlex.split(line)[1:]
        assert words[0] in VERBS or words[0] == "--version", line
        assert words[0] not in VERBS or isinstance(parser(words).parse_args(words), argparse.Namespace)


@pytest.mark.parametrize("page", TEXTS)
def test_a_link_of_a_page_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", TEXTS[page]):
        assert "://" in target or (ROOT / "docs" / target).exists(), target


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_a_valid_run(path: Path) -> None:
    assert isinstance(load_run(path), RunConfig)


def test_there_is_an_example_for_each_kind_of_run() -> None:
    runs = {path.stem: load_run(path) for path in EXAMPLES}
    assert {"text", "pairs", "conversations", "continued_pretraining", "lora_8b", "full_70b"} <= runs.keys()
    assert runs["lora_8b"].train.lora is not None
    assert runs["full_70b"].train.lora is None
    assert len({run.name for run in runs.values()}) == len(runs)  # none writes into another one's folder


def told_by_the_program() -> str:
    """Return all texts in the code, a line each, with … for what is filled in."""
    found = []
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else "…" for part in parts]
            found.append("".join(text for text in texts if isinstance(text, str)))
    return "\n".join(found)


def test_every_message_of_the_troubleshooting_page_is_one_of_the_program() -> None:
    told = told_by_the_program()
    firsts = re.findall(r"^\| (?:`` (.+?) ``|`([^`]+)`)", TEXTS["troubleshooting.md"], flags=re.MULTILINE)
    assert len(firsts) > 15
    for message in map("".join, firsts):
        assert message in told, message
