"""The settings of a source that a person names by options of `shardline init`, and those that are still open."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from cluster.config_loading import parse_yaml
from cluster.errors import ConfigError
from data_prep.preview.first_look import ENCODING, KIND_OF_KEY, FirstLook
from data_prep.rows.field_proposals import value_text
from data_prep.rows.fields import PLACEHOLDER, Fields
from data_prep.rows.roles import Role, quoted

ROLES = get_args(Role)
HEADLESS = re.compile(r"no header but a row.*`(?P<columns>columns: \[.*\])`")
WAY = re.compile(r"^#\s+(?P<fields>fields: \{.*)$")
OTHER_HALF = {"prompt": "completion", "completion": "prompt", "role": "content", "content": "role"}

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Named:
    """What was named: the columns by their keys, the roles of speakers, and the encoding.

    `lines` are all the lines below the source, where answers filled them in. `says_yes`: nothing is to be asked.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    encoding: str | None = None
    lines: tuple[str, ...] = ()
    says_yes: bool = False

    def __bool__(self) -> bool:
        return bool(self.fields or self.roles or self.encoding)


NOTHING_NAMED = Named()


def named_by(fields: Sequence[str], roles: Sequence[str], encoding: str | None) -> Named:
    """Return what the options --field, --role and --encoding name. Raises ConfigError for one that names nothing."""
    named = Named(
        fields=pairs_of("--field", "KEY=COLUMN, such as prompt=Question", fields),
        roles=pairs_of("--role", "NAME=ROLE, such as Anna=user", roles),
        encoding=encoding,
    )
    for name, role in named.roles.items():
        if role not in ROLES:
            raise ConfigError(f"--role {name}={role}: {role} is no role; write one of {', '.join(ROLES)}")
    return named


def pairs_of(option: str, form: str, texts: Sequence[str]) -> Mapping[str, str]:
    found = {}
    for text in texts:
        # a speaker's name may hold an equals sign, as a column's may; a role and a key hold none
        key, equals, value = text.rpartition("=") if option == "--role" else text.partition("=")
        if not (key and equals and value):
            raise ConfigError(f"{option} {text}: write {form}")
        found[key] = value
    return found


def settings_of(lines: Sequence[str]) -> Settings:
    """Return the settings that lines of YAML below a source hold."""
    return parse_yaml("\n".join(lines), "the settings of the data") or {}


def open_settings(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Return what is still to be filled in, as the setting and the key in it: `("fields", "prompt")`."""
    found = []
    for name, value in settings_of(lines).items():
        inner = value if isinstance(value, Mapping) else {"": value}
        found += [(name, key) for key, held in inner.items() if PLACEHOLDER in (key, held)]
    return found


def remarks_on(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the reasons among the comments: why something is open."""
    told = (line.lstrip("# ") for line in lines if line.startswith("# ") and not WAY.match(line))
    return tuple(line for line in told if not line.startswith(("of ", "its columns can be read in")))


def with_settings(found: FirstLook, lines: Sequence[str]) -> FirstLook:
    """Return what was found with these lines in place of its own; the columns that they name decide the kind."""
    settings = settings_of(lines)
    fields = settings.get("fields") or dict.fromkeys(settings.get("columns") or ())
    keys = [key for key, value in fields.items() if key != "rows" and value != PLACEHOLDER]
    heads = [KIND_OF_KEY[key] for key in keys if key in KIND_OF_KEY]
    kind = heads[0] if heads else "conversations" if {"messages", "group_by", "parent_id"} & set(keys) else found.kind
    return replace(found, kind=kind, lines=tuple(lines))


def with_named(found: FirstLook, named: Named) -> FirstLook:
    """Return what was found, with what the user named in the place of what was guessed or open."""
    settings = settings_of(found.lines)
    sections = sections_of(found.lines)
    if named.encoding:
        sections["encoding"] = [f"encoding: {quoted(named.encoding)}"]
    if named.fields:
        fields = merged(settings.get("fields") or {}, named.fields)
        missing = [line for line in sections.get("fields", ()) if is_missing(line, named.fields)]
        sections[""] = [line for line in sections.get("", ()) if ENCODING.search(line)]
        sections["fields"] = ["fields:", *(f"  {key}: {value_text(value)}" for key, value in fields.items()), *missing]
        if "messages" not in fields:
            sections.pop("markers", None)
    if named.roles:
        roles = {**(settings.get("roles") or {}), **named.roles}
        sections["roles"] = ["roles:", *(f"  {quoted(name)}: {role}" for name, role in roles.items())]
    return with_settings(found, [line for section in sections.values() for line in section])


def sections_of(lines: Sequence[str]) -> dict[str, list[str]]:
    """Return lines of YAML by the setting that they belong to; comments on lines of their own come first."""
    sections: dict[str, list[str]] = {"": []}
    name = ""
    for line in lines:
        if line.startswith("#"):
            sections[""].append(line)
            continue
        name = name if line.startswith(" ") else line.partition(":")[0]
        sections.setdefault(name, []).append(line)
    return sections


def merged(held: Settings, given: Mapping[str, str]) -> Settings:
    """Return the given fields beside those found that can stand with them: all, or where the rows lie, or none."""
    known = {key: value for key, value in held.items() if value != PLACEHOLDER}
    for kept in (known, {key: value for key, value in known.items() if key == "rows"}):
        try:
            Fields.model_validate({**kept, **given})
        except ValueError:
            continue
        return {**kept, **given}
    return given


def is_missing(line: str, given: Mapping[str, str]) -> bool:
    """Return whether a line of the fields is open whose other half is given: a question needs its answer."""
    (key, _, rest), halves = line.strip().partition(": "), given.keys()
    return rest.startswith(PLACEHOLDER) and key not in halves and OTHER_HALF.get(key) in halves


def ways_of(lines: Sequence[str]) -> list[str]:
    """Return the lines of `fields` of which one is to be chosen."""
    return [found["fields"] for line in lines if (found := WAY.match(line))]
