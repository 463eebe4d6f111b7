"""Write `docs/reference.md`: every key of a run's YAML, from the schema and its docstrings.

    python -m launch.key_reference > docs/reference.md

A test compares the page with what this prints.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from launch.config import RunConfig

HEAD = """\
# Every key of a run's YAML

Generated from the schema by `python -m launch.key_reference`; a test compares the two. Keys without a default are
required. An unknown key, a wrong type or a value out of range is an error that names the key, the value and what is
accepted. `shardline VERB run.yaml -o train.learning_rate=1e-5` sets a key for one command, and `base: other.yaml` takes
all keys that the file does not set from another one.
"""
WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path", NoneType: "null"}
BOUNDS = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}", "min_length": "not empty"}


def reference() -> str:
    """Return the page."""
    return HEAD + "".join(section("", RunConfig, {}))


def section(name: str, model: type[BaseModel], told: dict[type[BaseModel], str]) -> Iterator[str]:
    """Yield the table of a section's keys, then those of the sections in it; `name` is its dotted key.

    A section like one that was `told` refers to that one.
    """
    yield f"\n## {f'`{name}`' if name else 'The file'}\n\n{first_paragraph(model)}"
    if model in told:
        yield f" The keys are those of `{told[model]}`.\n"
        return
    told[model] = name
    yield "\n\n"
    yield "| key | value | default | |\n|---|---|---|---|\n"
    docs = docstrings(model)
    for key, field in model.model_fields.items():
        text = docs.get(key) or linked(dotted(name, key), field)
        if not text:
            raise ValueError(f"{model.__name__}.{key} has no docstring")
        yield f"| `{key}` | {kind(field)} | {default(field)} | {cell(text)} |\n"
    for key, field in model.model_fields.items():
        for inner in sections_in(field.annotation):
            yield from section(dotted(name, key) + ("[]" if is_list(field.annotation) else ""), inner, told)


def dotted(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def first_paragraph(model: type[BaseModel]) -> str:
    return " ".join((inspect.getdoc(model) or "").split("\n\n")[0].split())


def linked(name: str, field: FieldInfo) -> str:
    """Return a link to the section that a key holds, for keys that have no words of their own."""
    inner = next(sections_in(field.annotation), None)
    return "" if inner is None else f"{first_paragraph(inner)} See `{name}` below."


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstring below each key of a section, those that it inherits included."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not issubclass(owner, BaseModel) or owner is BaseModel:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for one, after in itertools.pairwise(statements):
            is_key = isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
            if is_key and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found[one.target.id] = str(after.value.value)  # type: ignore[attr-defined]
    return found


def kind(field: FieldInfo) -> str:
    """Return what a key accepts: `integer > 0`, `text`, `bf16 or fp32`."""
    bounds = [
        words.format(getattr(rule, name))
        for rule in field.metadata
        for name, words in BOUNDS.items()
        if getattr(rule, name, None) is not None
    ]
    return cell(" ".join([type_words(field.annotation), ", ".join(bounds)]).strip())


def type_words(annotation: Any) -> str:
    """Return a type in words."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(inside[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(type_words(one) for one in inside if one is not NoneType))
    if origin in (list, tuple):
        return f"list of {plural(type_words(inside[0]))}"
    if origin is dict:
        return f"{type_words(inside[0])}: {type_words(inside[1])}, ..."
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "keys"
    return WORDS.get(annotation, "any value")


def plural(words: str) -> str:
    return words if words.endswith(("s", "`")) else f"{words}s"


def default(field: FieldInfo) -> str:
    """Return a key's default; empty if it is required, or if the text says what it is."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None or isinstance(value, BaseModel):
        return "required" if field.is_required() else ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value not in ([], {}, ()) else ""


def is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(is_list(one) for one in get_args(annotation))


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from sections_in(inner)


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")  # noqa: T201
