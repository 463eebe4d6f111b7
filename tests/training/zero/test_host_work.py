"""Parameters that stay whole are left to DeepSpeed where what is replaced of it is not known."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training.zero import host_work
from training.zero.host_work import PersistentParameters, can_replace, partitioned_parameters
from training.zero.required_names import TESTED


class Module(torch.nn.Module):
    """Two parameters as ZeRO-3 has them, of which the second is persistent."""

    def __init__(self, **facts: Any) -> None:
        super().__init__()
        self._external_params: dict[int, Any] = {}
        for name, persist in (("large", False), ("small", True)):
            parameter = torch.nn.Parameter(torch.zeros(1))
            of_all = {"ds_tensor": torch.zeros(1), "ds_zero_param_process_group": None, "ds_process_group": None}
            for key, value in {**of_all, "ds_persist": persist, **facts}.items():
                setattr(parameter, key, value)
            self.register_parameter(name, parameter)

    def ds_external_parameters(self) -> Any:
        return self._external_params.items()


def test_a_parameter_is_listed_once_unless_it_is_persistent_and_those_of_others_as_they_come() -> None:
    module, other = Module(), Module()
    assert set(partitioned_parameters(module)) == {module.large, module.small}  # of a model that DeepSpeed looks after
    module.__dict__[host_work.LISTED] = {}
    assert list(partitioned_parameters(module)) == [module.large]
    module._external_params |= {id(other.large): other.large, id(other.small): other.small}
    assert list(partitioned_parameters(module, recurse=True)) == [module.large, other.large]


@pytest.mark.parametrize(
    ("version", "facts", "reason"),
    [
        ("0.99.0", {}, "DeepSpeed 0.99.0 was not tested"),
        (TESTED[-1], {"ds_zero_param_process_group": "a host's ranks"}, "ZeRO"),
        (TESTED[-1], {"ds_tensor": SimpleNamespace(ds_quant_scale=1)}, "ZeRO"),
    ],
)
def test_what_is_not_known_is_left_to_deepspeed_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, version: str, facts: Any, reason: str
) -> None:
    monkeypatch.setattr(host_work, "installed", lambda: version)
    with caplog.at_level(logging.INFO, logger="training"):
        assert not can_replace(Module(**facts))
    assert reason in caplog.text


def test_a_device_that_was_not_tried_is_left_to_deepspeed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host_work, "TRIED_ON", set())
    with caplog.at_level(logging.INFO, logger="training"):
        assert not can_replace(Module())
    assert "the replacement was not tried on cpu" in caplog.text


def test_what_is_left_to_deepspeed_is_gathered_by_deepspeed() -> None:
    asked: list[str] = []
    first = SimpleNamespace(
        partition=lambda some: asked.append("freed"), all_gather=lambda some: asked.append("gathered")
    )
    optimizer = SimpleNamespace(persistent_parameters=[first])
    persistent = PersistentParameters(Module(), optimizer, are_kept=False)
    persistent.gather_updated()
    assert not asked and optimizer.persistent_parameters == [first]
    persistent.gather()
    assert asked == ["freed", "gathered"]


def test_this_deepspeed_is_replaced() -> None:
    assert can_replace(Module())


@pytest.mark.slow
def test_losses_norms_and_states_are_those_of_deepspeed_s_own_way_to_the_bit(trial_of: Callable[..., Any]) -> None:
    trial = trial_of(2, "host_work_ranks.py")
    for rank in range(2):
        for case, (own, ours) in json.loads((trial.folder / f"rank-{rank}.json").read_text()).items():
            assert ours["is_replaced"] and not own["is_replaced"]
            assert own["is_same_again"] and ours["is_same_again"], case  # after it was filled with an earlier state
            assert (ours["seen"], ours["states"]) == (own["seen"], own["states"]), case
