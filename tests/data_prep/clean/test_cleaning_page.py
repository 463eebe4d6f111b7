"""docs/cleaning.md speaks of every switch that there is, with its default, and of no other."""

from __future__ import annotations

import re
from pathlib import Path

from cluster.config_loading import parse_yaml
from data_prep.clean.privacy import KINDS, TAGS
from data_prep.config import CleaningConfig, PrivacyConfig

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "cleaning.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", PAGE, re.M))
SPOKEN = {"True": "true", "None": "none", "[]": "none"}


def test_every_switch_is_on_the_page_with_its_default() -> None:
    defaults = {name: str(value) for name, value in CleaningConfig().model_dump().items()}
    defaults |= {"private": "all `keep`", "languages": "any"}
    assert {name: SPOKEN.get(value, value) for name, value in defaults.items()} == ROWS
    assert set(PrivacyConfig().model_dump().values()) == {"keep"}


def test_every_kind_of_private_data_and_rule_of_quality_is_on_the_page() -> None:
    (private,) = (line for line in PAGE.splitlines() if line.startswith("| `private`"))
    assert all(f"`{kind}`" in private for kind in KINDS) and TAGS["email"].decode() in private
    (quality,) = (line for line in PAGE.splitlines() if line.startswith("| `quality`"))
    rules = re.findall(r"'(\w+)'", str(CleaningConfig.model_fields["quality"].annotation))
    assert rules and all(f"`{rule}`" in quality for rule in rules)


def test_the_page_s_yaml_is_understood() -> None:
    (yaml,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    assert CleaningConfig.model_validate(parse_yaml(yaml, "the page")["data"]["cleaning"]).languages == ["en"]
