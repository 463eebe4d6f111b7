"""The README speaks of what is there."""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

import pytest

from launch.arguments import VERBS, parser

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")


def test_the_table_of_verbs_is_the_command_s() -> None:
    in_table = set(re.findall(r"^\| `([\w-]+)", README, re.M))
    assert in_table == set(VERBS)
    assert all(callable(importlib.import_module(module).run) for module, _ in VERBS.values())


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^shardline [^#\n]+", README, re.M))))
def test_a_command_of_the_readme_is_understood(line: str) -> None:
    words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)[1:]]
    assert isinstance(parser(words).parse_args(words), argparse.Namespace)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|training|data_prep|launch)/[\w./]+)`", README))))
def test_a_file_that_the_readme_names_exists(path: str) -> None:
    assert (ROOT / path).exists() or path == "launch/site.env"  # the site writes that one


def test_make_has_the_targets_that_the_readme_names() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make (\w+)", README, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([\w/]+\.py::\w+)`", TABLE))))
def test_a_test_that_the_table_of_promises_names_exists(name: str) -> None:
    path, _, function = name.partition("::")
    assert f"\ndef {function}(" in (ROOT / "tests" / path).read_text(encoding="utf-8")
