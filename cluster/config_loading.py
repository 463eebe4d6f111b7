"""Read YAML into frozen models, or report every problem at once: the key, what was given, what is accepted."""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from cluster.errors import ConfigError
from cluster.wording import count_of

PathValue = Annotated[Path, BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value)]


class Section(BaseModel):
    """A frozen section of the configuration: unknown keys and wrong types are errors, nothing is coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


Model = TypeVar("Model", bound=BaseModel)


def load_config(model: type[Model], path: Path, overrides: Sequence[str] = ()) -> Model:
    """Read `path`, with its `base:` files below it and `key.key=value` overrides above it, into `model`.

    Raises ConfigError that lists every problem, one line each.
    """
    values = read_yaml(path)
    for override in overrides:
        values = merged(values, parse_override(override))
    return validate(model, values, source=str(path))


def validate(model: type[Model], values: Mapping[str, Any], source: str) -> Model:
    """Return `values` as a `model`, or raise ConfigError with every problem."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [describe(problem, model) for problem in error.errors()]
        raise ConfigError("\n  ".join([f"{source}: {count_of(len(lines), 'problem')} to fix", *lines])) from None


def read_yaml(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return a YAML file's mapping, laid over the file that its `base:` key names (relative to it).

    `above` are the files that this one is the base of.
    """
    if path.resolve() in above:
        raise ConfigError(f"{path}: base: the files are each other's base, in a circle; remove one of the `base:` keys")
    values = parse_yaml(read_text(path), str(path))
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values at the top level, got {type(values).__name__}")
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: expected the path of a YAML file, got {base!r}")
    return merged(read_yaml(path.parent / base, (*above, path.resolve())), values)


def read_text(path: Path) -> str:
    if path.exists() and not path.is_file():  # a named pipe would be waited for
        raise ConfigError(f"{path}: not a file; give the path of a YAML file")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f"; this folder has: {', '.join(near)}" if near else "; `shardline init` writes one"
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML 1.2: `3e-4` is a number, `12:30:00` is text, a repeated key is an error with its line."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = (error.problem or str(error)).strip()
        raise ConfigError(f"{source}{line}: {problem}") from None
    except (ValueError, AssertionError) as error:  # ruamel's own, of what looks like a number, a date or a directive
        told = f"{source}: what looks like a date, a number or a directive is none ({error}); put it in quotes"
        raise ConfigError(told) from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply to be a configuration") from None


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return a configuration as YAML that `read_yaml` reads back."""
    stream = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.width = 4096  # a long path stays beside its key
    writer.dump(dict(values), stream)
    return stream.getvalue()


def parse_override(text: str) -> dict[str, Any]:
    """Turn `train.learning_rate=1e-5` into nested keys; the value is read as YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"-o {text}: expected key=value, for example -o train.learning_rate=1e-5")
    nested: Any = parse_yaml(value, f"-o {text}")
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return dict(nested)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with the keys of `above` laid over it, section by section."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def flat(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings below a key under dotted names; those of a list by their place."""
    pairs = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    if not pairs:
        yield name, values
    for key, value in pairs:
        yield from flat(value, f"{name}.{key}" if name else str(key))


def describe(problem: ErrorDetails, model: type[BaseModel]) -> str:
    """Return one line for one problem: the key, what was given, and what is accepted or the nearest valid name."""
    place = ".".join(str(part) for part in problem["loc"]) or "(file)"
    given = repr(problem["input"])
    given = given if len(given) <= 80 else given[:77] + "..."
    if isinstance(problem["input"], date):
        given = f"the date {problem['input']}; if it is a text, put it in quotes"
    match problem["type"]:
        case "extra_forbidden":
            return f"{place}: unknown key{nearest(problem, model)}"
        case "missing":
            return f"{place}: required, but missing"
        case "value_error":
            return f"{place}: {problem['ctx']['error']}"
        case _:
            message = problem["msg"].removeprefix("Input should be ")
            return f"{place}: expected {message}, got {given}"


def nearest(problem: ErrorDetails, model: type[BaseModel]) -> str:
    """Return the nearest valid name to an unknown key, or the list of valid names."""
    section: type[BaseModel] | None = model
    for part in problem["loc"][:-1]:
        if section is None or isinstance(part, int):
            continue
        section = section_of(section.model_fields[part].annotation) if part in section.model_fields else section
    if section is None:
        return ""
    names = list(section.model_fields)
    close = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; accepted: {', '.join(names)}"


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the first model class inside a field's annotation (itself, optional, list or union)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part))), None)
