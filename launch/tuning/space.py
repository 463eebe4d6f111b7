"""The search space: which keys of the run's YAML a study varies, and between which values.

train.learning_rate: {low: 1e-5, high: 1e-3, log: true}
train.lora.rank: {low: 4, high: 64, log: true, int: true}
train.schedule: {choices: [cosine, linear]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from cluster.config_loading import Section, read_yaml, validate
from cluster.disk.atomic_files import canonical_json
from cluster.errors import ConfigError
from cluster.wording import count_of
from launch.config import RunConfig
from training.plan import identity_of

CHECKED_VALUES = 256  # a range of no more values is checked value by value, a larger one at its ends and middle
NOT_SEARCHED = {
    "name": "a trial has its own name",
    "folder": "a trial has its own folder",
    "seed": "the best of several seeds is the luckiest, not the best",
    "data": "it decides what is in the shards, and all trials train on the same ones; prepare another run to compare",
    "cluster": "it has no effect on the held-out loss of a trial",
    "trackers": "it has no effect on the held-out loss of a trial",
    "evaluate": "it has no effect on the held-out loss of a trial",
    "export": "it has no effect on the held-out loss of a trial",
}


class Range(Section):
    """Values between `low` and `high`, both included."""

    low: float
    high: float
    log: bool = False
    """Search on a logarithmic scale."""
    step: float | None = Field(default=None, gt=0)
    """Only the values low, low + step, ... up to high."""
    whole: bool = Field(default=False, alias="int")
    """Whole numbers only."""

    @model_validator(mode="after")
    def check_values(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"'low' ({self.low:g}) is not less than 'high' ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"'log' needs a 'low' above 0, and it is {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("give one of 'log' and 'step', not both")
        if self.whole and not all(value.is_integer() for value in (self.low, self.high, self.step or 1.0)):
            raise ValueError("'int' needs whole numbers for 'low', 'high' and 'step'")
        count = (self.high - self.low) / (self.step or 1.0)
        if self.step is not None and abs(count - round(count)) > 1e-6:
            raise ValueError(f"'high' ({self.high:g}) is not 'low' ({self.low:g}) plus a multiple of 'step'")
        return self

    def suggest(self, trial: Any, key: str) -> Any:
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)

    def probes(self) -> list[Any]:
        """Return values that the schema must accept: all of a short range, else both ends and the middle."""
        step = self.step or (1.0 if self.whole else None)
        count = None if step is None else round((self.high - self.low) / step) + 1
        if step is not None and count is not None and count <= CHECKED_VALUES:
            values = [self.low + number * step for number in range(count)]
        else:
            values = [self.low, (self.low + self.high) / 2, self.high]
        return [round(value) if self.whole else value for value in values]

    def stored(self, value: Any) -> Any:
        """Return a value in the form that Optuna stores; None if it lies outside of the range."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return None
        off = (value - self.low) / (self.step or (1.0 if self.whole else 1e-300))
        is_on_grid = (self.step is None and not self.whole) or abs(off - round(off)) < 1e-6
        return (int(value) if self.whole else float(value)) if is_on_grid else None

    def value_of(self, stored: Any) -> Any:
        return stored


class Choices(Section):
    """One of these values, of any type that the key takes."""

    choices: list[Any]

    @model_validator(mode="after")
    def check_values(self) -> Self:
        if len(self.choices) < 2:
            raise ValueError(f"'choices' needs two values or more, got {len(self.choices)}")
        if len({canonical_json(value) for value in self.choices}) < len(self.choices):
            raise ValueError("'choices' contains a value twice")
        return self

    def suggest(self, trial: Any, key: str) -> Any:
        return self.value_of(trial.suggest_categorical(key, [canonical_json(value) for value in self.choices]))

    def probes(self) -> list[Any]:
        return self.choices

    def stored(self, value: Any) -> Any:
        """Return a value in the form that Optuna stores; None if it is not among the choices."""
        return canonical_json(value) if value in self.choices else None

    def value_of(self, stored: Any) -> Any:
        return json.loads(stored)  # Optuna stores no lists


@dataclass(frozen=True, kw_only=True)
class Space:
    """The keys of the run's YAML that a study varies."""

    parameters: Mapping[str, Range | Choices]
    source: Path

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Return a trial's value for each key: those that it has already, else the sampler's."""
        return {key: parameter.suggest(trial, key) for key, parameter in self.parameters.items()}

    def values_of(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return a trial's values from the form that Optuna stores; without the keys that it has no value for yet."""
        return {key: parameter.value_of(stored[key]) for key, parameter in self.parameters.items() if key in stored}

    def own_values(self, run: RunConfig) -> dict[str, Any] | None:
        """Return the run's own values, as Optuna stores them; None if one of them is outside of the space."""
        values = run.model_dump(mode="json")
        stored = {key: parameter.stored(value_at(values, key)) for key, parameter in self.parameters.items()}
        return None if None in stored.values() else stored

    def as_record(self) -> dict[str, Any]:
        return {key: parameter.model_dump(mode="json", by_alias=True) for key, parameter in self.parameters.items()}


def read_space(path: Path) -> Space:
    """Read a search space. Raises ConfigError with every problem of its own; see `check_space` for the rest."""
    values = read_yaml(path)
    if not values:
        raise ConfigError(
            f"{path}: no keys; write for example: train.learning_rate: {{low: 1e-5, high: 1e-3, log: true}}"
        )
    parameters: dict[str, Range | Choices] = {}
    for key, value in values.items():
        if not isinstance(value, dict) or not {"low", "high", "choices"} & value.keys():
            nested = [f"{key}.{name}" for name in value][:1] if isinstance(value, dict) else []
            hint = f"; keys inside of a section are written with dots: {nested[0]}: ..." if nested else ""
            raise ConfigError(
                f"{path}: {key}: expected {{low: ..., high: ...}} or {{choices: [...]}}, got {value!r}{hint}"
            )
        source = f"{path}: {key}"
        is_list = "choices" in value
        parameters[str(key)] = validate(Choices, value, source) if is_list else validate(Range, value, source)
    return Space(parameters=parameters, source=path)


def check_space(space: Space, run: RunConfig) -> None:
    """Raise ConfigError with every key that cannot be searched, and every value that the run's schema refuses."""
    problems = [problem for key in space.parameters if (problem := problem_of(space, key, run))]
    if problems:
        told = count_of(len(problems), "problem")
        raise ConfigError("\n  ".join([f"{space.source}: {told} to fix", *problems]))


def problem_of(space: Space, key: str, run: RunConfig) -> str | None:
    """Return what is wrong with one key of the space; None if nothing is."""
    section, _, rest = key.partition(".")
    if section in NOT_SEARCHED:
        return f"{key}: cannot be searched: {NOT_SEARCHED[section]}"
    values = run.model_dump(mode="json")
    for parameter_value in space.parameters[key].probes():
        try:
            validate(RunConfig, placed(values, {key: parameter_value}), source=f"{key}: {parameter_value!r}")
        except ConfigError as error:
            hint = "" if "integer" not in str(error) else " (for whole numbers add `int: true`)"
            return " ".join(str(error).replace("1 problem to fix", "").split()) + hint
    if section == "train" and f"train.{rest.partition('.')[0]}" not in identity_of(run.train, "", 0):
        return f"{key}: cannot be searched: it has no effect on the held-out loss of a trial"
    return None


def placed(values: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration's values with those of dotted keys in their places.

    Raises ConfigError for a key inside of a section that the configuration does not have: setting one key of `lora`
    would turn it on.
    """
    result = json.loads(json.dumps(values))
    for key, value in chosen.items():
        *sections, name = key.split(".")
        inside = result
        for number, section in enumerate(sections):
            inside = inside.get(section) if isinstance(inside, dict) else None
            if not isinstance(inside, dict):
                parent = ".".join(sections[: number + 1])
                raise ConfigError(
                    f"{key}: the run has no section '{parent}'; add it to the run's YAML, or drop the key"
                )
        inside[name] = value
    return dict(result)


def value_at(values: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key; None if there is none."""
    inside: Any = values
    for name in key.split("."):
        inside = inside.get(name) if isinstance(inside, Mapping) else None
    return inside


def shown(values: Mapping[str, Any]) -> str:
    """Return chosen values as a line of text."""
    return ", ".join(f"{key}={spelled(value)}" for key, value in values.items())


def spelled(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value) if isinstance(value, str) else json.dumps(value)
