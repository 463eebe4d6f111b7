"""The command that `shardline init` prints as the next one: it repeats what was given, and asks for what is open."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from data_prep.preview.first_look import ENCODING, FirstLook
from data_prep.rows.fields import PLACEHOLDER
from launch.first_run.named_settings import HEADLESS, ROLES, Named, open_settings, settings_of, ways_of

OUTPUT = Path("run.yaml")  # where the YAML goes if nobody says otherwise
CHOICES = re.compile(r"# (?:.*; )?(?P<told>one of: [^;]+)")


def words_given(
    kind: str | None, data: str, model: str | None, output: Path, lora: bool | None, named: Named
) -> list[str]:
    """Return the words after `shardline init` that say again what was given."""
    return [
        *([kind] if kind is not None else []),
        *option("--data", data),
        *(word for key, column in named.fields.items() for word in option("--field", f"{key}={column}")),
        *(word for name, role in named.roles.items() for word in option("--role", f"{name}={role}")),
        *(option("--encoding", named.encoding) if named.encoding else []),
        *(option("--model", model) if model is not None else []),
        *([] if lora is None else ["--lora"] if lora else ["--no-lora"]),
        *(option("--output", str(output)) if output != OUTPUT else []),
        *(["--yes"] if named.says_yes else []),
    ]


def option(name: str, value: str) -> list[str]:
    """Return an option with its value; one that begins with a dash would be read as the next option."""
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


def next_step(given: Sequence[str], found: FirstLook, output: Path) -> str:
    """Return the next command, for a YAML with placeholders the ways to it."""
    check = f"shardline check {shlex.quote(str(output))}"
    if not open_settings(found.lines):
        return f"next: {check}"
    missing, told = missing_options(found.lines, output)
    by_hand = f"replace each {PLACEHOLDER} in {output}, look at its numbers, then {check}"
    headless = next((match["columns"] for line in found.lines if (match := HEADLESS.search(line))), None)
    if headless is not None:
        return f"next: write `{headless}` in place of `fields` in {output}, look at its numbers, then {check}"
    if not missing:
        return f"next: {by_hand}"
    command = shlex.join(["shardline", "init", *given, *missing])
    again = f"remove {shlex.quote(str(output))} and run `{command}`, which measures your data"
    return f"next: {again}{f' ({told})' if told else ''}; or {by_hand}"


def missing_options(lines: Sequence[str], output: Path) -> tuple[list[str], str]:
    """Return the options that fill in what is open, none if they cannot, and what their capitals stand for."""
    left = open_settings(lines)
    encoding = next((found[1] for line in lines if (found := ENCODING.search(line))), "NAME")
    words = option("--encoding", encoding) if ("encoding", "") in left else []
    ways = [settings_of([way])["fields"] for way in ways_of(lines)]
    if ways:
        plain = [way for way in ways if all(isinstance(column, str) for column in way.values())]
        columns = plain[0].items() if plain else ()
        chosen = [word for key, column in columns for word in option("--field", f"{key}={column}")]
        return ([*words, *chosen] if chosen else []), f"that is one of {len(ways)} ways, and {output} lists them"
    for name, key in left:
        words += {"fields": ["--field", f"{key}=COLUMN"], "roles": option("--role", f"{key}=ROLE")}.get(name, [])
    told = [f"COLUMN is {found['told'].strip()}" for line in lines if (found := CHOICES.search(line))][:1]
    told += [f"ROLE is one of: {', '.join(ROLES)}"] if any(name == "roles" for name, _ in left) else []
    is_whole = all(
        name == "encoding" or (name in ("fields", "roles") and key and key.isprintable()) for name, key in left
    )
    return (words if is_whole else []), "; ".join(told)
