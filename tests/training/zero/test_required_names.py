"""A DeepSpeed that lacks what the adapters use is refused at the start; the lists of that are complete."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.errors import EXIT_USER_ACTION, ClusterError, exit_code_of
from training.zero import required_names
from training.zero.required_names import (
    ANY_OPTIMIZER,
    ENGINE,
    PACKAGE,
    STAGE_1_BF16,
    STAGE_3,
    STAGE_3_PARAMETER,
    STAGES_1_2,
    TESTED,
    check_engine,
    check_package,
    check_version,
)

ROOT = Path(__file__).resolve().parents[3]
ZERO = ROOT / "training" / "zero"
OF_STAGE_3 = ("zero3.py", "host_work.py", "gradient_work.py")


class BF16_Optimizer(SimpleNamespace):  # noqa: N801  (DeepSpeed's name: the adapters tell it by that)
    """Any attributes, as the optimizer of stage 1 in bf16."""


def owner_of(names: Any, kind: type[SimpleNamespace] = SimpleNamespace) -> Any:
    """Return an object that has these attributes, dotted ones as objects in objects, and no others."""
    owner = kind()
    for name in names:
        inner = owner
        for step in name.split("."):
            if not hasattr(inner, step):
                setattr(inner, step, SimpleNamespace())
            inner = getattr(inner, step)
    return owner


def check_stage(stage: int, engine: Any, optimizer: Any, kind: type[SimpleNamespace], parameter: Any) -> None:
    built = owner_of(engine)
    if "module" in engine:
        built.module.parameters = lambda: [owner_of(parameter)]
    check_engine(built, owner_of(optimizer, kind), stage)


@pytest.mark.parametrize("lacking", PACKAGE)
def test_a_package_without_a_name_is_refused_with_that_name(lacking: str) -> None:
    check_package(owner_of(PACKAGE))
    with pytest.raises(ClusterError, match=rf"deepspeed has no {re.escape(lacking)} \("):
        check_package(owner_of(PACKAGE.keys() - {lacking}))


@pytest.mark.parametrize(
    ("stage", "kind", "names"),
    [(1, BF16_Optimizer, STAGE_1_BF16), (2, SimpleNamespace, STAGES_1_2), (3, SimpleNamespace, STAGE_3)],
)
def test_an_optimizer_or_an_engine_without_any_one_name_is_refused(
    stage: int, kind: type[SimpleNamespace], names: dict[str, str]
) -> None:
    optimizer = {**ANY_OPTIMIZER, **names}
    check_stage(stage, ENGINE, optimizer, kind, STAGE_3_PARAMETER)
    for lacking in optimizer:
        with pytest.raises(ClusterError, match=rf"\(ZeRO stage {stage}\) has no {lacking} \("):
            check_stage(stage, ENGINE, optimizer.keys() - {lacking}, kind, STAGE_3_PARAMETER)
    for lacking in ENGINE:
        with pytest.raises(ClusterError, match=rf"has no {lacking} \("):
            check_stage(stage, ENGINE.keys() - {lacking}, optimizer, kind, STAGE_3_PARAMETER)


@pytest.mark.parametrize("lacking", STAGE_3_PARAMETER)
def test_a_parameter_of_stage_3_without_a_name_is_refused(lacking: str) -> None:
    names = {**ANY_OPTIMIZER, **STAGE_3}
    with pytest.raises(ClusterError, match=rf"a parameter \(ZeRO stage 3\) has no {lacking} \("):
        check_stage(3, ENGINE, names, SimpleNamespace, STAGE_3_PARAMETER.keys() - {lacking})


def test_the_error_says_what_is_installed_what_was_tested_and_what_to_do() -> None:
    with pytest.raises(ClusterError) as caught:
        check_package(owner_of(PACKAGE.keys() - {"zero.Init", "initialize"}))
    told = str(caught.value)
    assert "initialize (" in told and "zero.Init (" in told
    assert f"DeepSpeed {importlib.metadata.version('deepspeed')} is installed" in told
    assert f"was tested with DeepSpeed {', '.join(TESTED)}" in told
    assert f"pip install deepspeed=={TESTED[-1]}" in told
    assert exit_code_of(caught.value) == EXIT_USER_ACTION


@pytest.mark.parametrize(
    ("version", "fits"),
    [("0.18.0", False), ("0.19.7", False), ("0.9.19", False), ("0.19.8", True), ("0.19.9+4d2", True), ("1.0rc1", True)],
)
def test_a_version_below_the_floor_is_refused(monkeypatch: pytest.MonkeyPatch, version: str, fits: bool) -> None:
    monkeypatch.setattr(required_names, "installed", lambda: version)
    if fits:
        check_version()
    else:
        with pytest.raises(ClusterError, match=rf"DeepSpeed {version} is installed, {TESTED[0]} or newer is needed"):
            check_version()


def test_the_floor_is_that_of_the_package_and_the_newest_that_was_tested_is_what_make_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"deepspeed>={TESTED[0]}" in project["optional-dependencies"]["train"]
    assert f"deepspeed=={TESTED[-1]}" in (ROOT / "constraints.txt").read_text().splitlines()


def accesses(*files: str) -> Iterator[str]:
    """Yield every attribute in these files with all that it is taken of: `self.optimizer.grad_position`."""
    for file in files:
        for node in ast.walk(ast.parse((ZERO / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                yield ast.unparse(node)


def taken_of(owner: str, *files: str) -> set[str]:
    """Return the first attribute that is taken of `owner`, whether a variable or an attribute of self."""
    pattern = re.compile(rf"(?:self\.)?(?:{owner})\.(\w+)")
    return {match[1] for text in accesses(*files) if (match := pattern.fullmatch(text))}


def test_the_lists_hold_each_attribute_that_the_adapters_take_of_an_optimizer_and_nothing_else() -> None:
    hidden = {"check_grad_overflow", "averaged_gradients"}  # by their names: hiding(NAME=...), getattr(..., "NAME")
    both, stage_3 = {**STAGES_1_2, **STAGE_1_BF16, **ANY_OPTIMIZER}.keys(), {*STAGE_3, *ANY_OPTIMIZER}
    assert taken_of("optimizer", "zero3.py", "host_work.py", "gradient_work.py") == {
        name.split(".")[0] for name in stage_3
    }
    assert taken_of("optimizer", "zero12.py") == both - hidden
    text = (ZERO / "zero12.py").read_text()
    assert all(f'"{name}"' in text or f"hiding({name}=" in text for name in hidden)


def test_the_lists_hold_each_attribute_that_is_taken_of_the_engine_and_the_package() -> None:
    assert taken_of("deepspeed", "engine.py") >= ENGINE.keys()
    of_package = {
        text.removeprefix("deepspeed.")
        for text in accesses(
            "engine.py", "model.py", "zero12.py", "zero3.py", "host_work.py", "gradient_work.py", "nvme.py"
        )
        if text.startswith("deepspeed.") and "(" not in text
    }
    longest = {name for name in of_package if not any(other.startswith(f"{name}.") for other in of_package)}
    assert longest == PACKAGE.keys()
    of_engine = {text for text in accesses("engine.py") if re.fullmatch(r"self\.deepspeed\.\w+", text)}
    assert of_engine == {f"self.deepspeed.{name}" for name in ENGINE}


def test_the_lists_hold_each_attribute_of_a_parameter_that_torch_does_not_give_it() -> None:
    found = taken_of("parameter|first", *OF_STAGE_3)
    assert {name for name in found if not hasattr(torch.nn.Parameter, name)} == STAGE_3_PARAMETER.keys()
