"""YAML in, frozen models or every problem at once out."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from cluster.config_loading import Section, load_config
from cluster.errors import ConfigError


class Optimizer(Section):
    rate: float = Field(default=0.1, gt=0)
    kind: str = "adam"


class Run(Section):
    name: str
    steps: int = 1
    optimizer: Optimizer = Optimizer()
    sources: list[Optimizer] = Field(default_factory=list)


def written(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, path, overrides)
    return str(caught.value)


def test_numbers_in_scientific_notation_are_numbers_and_clock_times_are_text(tmp_path: Path) -> None:
    run = load_config(Run, written(tmp_path, "name: 12:30:00\noptimizer: {rate: 3e-4}\n"))
    assert (run.name, run.optimizer.rate) == ("12:30:00", 3e-4)


def test_a_text_that_yaml_takes_for_a_date_is_told(tmp_path: Path) -> None:
    text = problems_of(written(tmp_path, "name: 2024-01-01\nsteps: 1\n"))
    assert "got the date 2024-01-01; if it is a text, put it in quotes" in text


@pytest.mark.parametrize("value", ["2024-02-30", "0x_", "-_"])
def test_what_is_nearly_a_date_or_a_number_is_told_and_no_traceback(tmp_path: Path, value: str) -> None:
    assert "put it in quotes" in problems_of(written(tmp_path, f"name: {value}\nsteps: 1\n"))


def test_a_repeated_key_is_an_error_that_names_its_line(tmp_path: Path) -> None:
    assert "run.yaml:3" in problems_of(written(tmp_path, "name: a\nsteps: 1\nsteps: 2\n"))


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = problems_of(written(tmp_path, "stepz: 1\nsteps: many\noptimizer: {rate: -1, kid: x}\n"))
    for expected in [
        "name: required, but missing",
        "stepz: unknown key; did you mean 'steps'?",
        "steps: expected a valid integer, got 'many'",
        "optimizer.rate: expected greater than 0, got -1",
        "optimizer.kid: unknown key; did you mean 'kind'?",
        "5 problems",
    ]:
        assert expected in text


def test_an_unknown_key_inside_a_list_names_the_nearest_key_of_that_list(tmp_path: Path) -> None:
    assert "sources.0.rte: unknown key; did you mean 'rate'?" in problems_of(
        written(tmp_path, "name: a\nsources: [{rte: 1.0}]\n")
    )


def test_a_key_like_no_other_is_told_what_is_accepted(tmp_path: Path) -> None:
    assert "accepted: name, steps, optimizer, sources" in problems_of(written(tmp_path, "name: a\nqqqq: 1\n"))


def test_text_where_a_number_belongs_is_not_turned_into_one(tmp_path: Path) -> None:
    assert "steps: expected" in problems_of(written(tmp_path, "name: a\nsteps: '3'\n"))


def test_a_file_is_laid_over_its_base_section_by_section(tmp_path: Path) -> None:
    written(tmp_path, "name: base\noptimizer: {rate: 0.5, kind: sgd}\n", "base.yaml")
    run = load_config(Run, written(tmp_path, "base: base.yaml\noptimizer: {rate: 0.25}\n"))
    assert (run.name, run.optimizer.rate, run.optimizer.kind) == ("base", 0.25, "sgd")


def test_an_override_wins_over_the_file_and_is_checked_like_it(tmp_path: Path) -> None:
    path = written(tmp_path, "name: a\noptimizer: {kind: sgd}\n")
    run = load_config(Run, path, ["optimizer.rate=1e-5"])
    assert (run.optimizer.rate, run.optimizer.kind) == (1e-5, "sgd")
    assert "optimizer.rat: unknown key" in problems_of(path, "optimizer.rat=1")
    assert "expected key=value" in problems_of(path, "optimizer.rate")


def test_a_missing_file_names_the_files_that_are_there(tmp_path: Path) -> None:
    written(tmp_path, "name: a\n", "other.yaml")
    assert "other.yaml" in problems_of(tmp_path / "run.yaml")


def test_a_file_that_is_no_mapping_says_so(tmp_path: Path) -> None:
    assert "expected keys and values" in problems_of(written(tmp_path, "- a\n- b\n"))
