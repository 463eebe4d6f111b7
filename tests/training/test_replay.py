"""What a replay says of a step that does not come out as it was."""

from __future__ import annotations

from typing import Any

import pytest

from launch.runs.inspect import asked_of_train
from training.replay import chance_told, compared, differences, earlier_steps, not_recorded, reasons, settings_told

HERE: dict[str, Any] = {
    "world_size": 2,
    "device": "A",
    "versions": {"torch": "2.13.0", "shardline": "1", "commit": None},
}
THREE = {"stage": 3, "offload": "none"}


def test_figures_are_compared_to_the_bit() -> None:
    then, now = {"loss": 1.0, "gradient_norm": 2.0}, {"step": 3, "loss": 1.0, "gradient_norm": 2.0}
    assert compared(then, now)[1]
    lines, is_same = compared(then, {**now, "loss": 1.0000000000000002})
    assert not is_same and lines[0].endswith("replayed: differs by 2.22e-16") and lines[1].endswith("equal to the bit")


def test_what_differs_from_the_attempt_that_took_the_step_is_named() -> None:
    attempt = {"step": 0, "world_size": 4, "device": "B", "versions": {"torch": "2.12.0", "shardline": "1"}}
    told = differences(attempt, HERE)
    assert told == ["ranks: then 4, now 2", "hardware: then B, now A", "torch: then 2.12.0, now 2.13.0"]
    assert reasons(told, [])[1:] == [f"  {line}" for line in told]


@pytest.mark.parametrize(
    ("then", "now", "said"), [(True, False, ["then"]), (True, True, ["then and now"]), (False, False, [])]
)
def test_code_that_was_changed_since_its_commit_is_no_proof_that_it_is_the_same(
    then: bool, now: bool, said: list[str]
) -> None:
    was, new = ({**HERE, "versions": {**HERE["versions"], "commit": "1f", "dirty": dirty}} for dirty in (then, now))
    assert differences({"step": 0, **was}, new) == [f"code of shardline changed since its commit: {s}" for s in said]


def test_what_is_asked_of_a_replay_is_known_however_it_is_written() -> None:
    overrides = ["train.attention=sdpa", "train={micro_batch_rows: 1, compile: none}", "seed=3"]
    assert asked_of_train(overrides) == {"attention", "micro_batch_rows", "compile"}


def test_settings_that_decide_more_than_rounding_or_leave_bits_to_chance_are_told() -> None:
    before, here = ({"zero": THREE, "config": {"micro_batch_rows": n, "deterministic": False}} for n in (1, 2))
    assert settings_told(before, here) == [
        "train.micro_batch_rows was 1, is 2 (with dropout or a router's auxiliary loss, more than rounding)"
    ]
    assert len(chance_told(here, has_gpu=True)) == 1 and chance_told(here, has_gpu=False) == []
    assert chance_told({"config": {"deterministic": True}}, has_gpu=True) == []


def test_what_explains_nothing_and_what_is_not_known_is_said_too() -> None:
    here = {"config": {"deepspeed": None}}
    whole, bare = {"step": 0, **HERE}, {"step": 0, "world_size": 2}
    assert not_recorded(whole, here, here) == []
    assert reasons([], [])[0].startswith("no difference was found in what is recorded")
    assert not_recorded(whole, None, {"config": {"deepspeed": "my.json"}}) == ["settings", "what my.json said"]
    assert "so it may differ too: settings" in reasons([], ["settings"])[0] and len(reasons([], ["settings"])) == 2
    assert len(reasons([], not_recorded(bare, None, here))) == 1  # nothing was compared: nothing is cleared
    assert earlier_steps({"step": 8}, loaded=8) == []
    assert "from the checkpoint after step 4, as the one after step 8" in earlier_steps({"step": 8}, loaded=4)[0]
