"""What a replay says of a step that does not come out as it was."""

from __future__ import annotations

from typing import Any

from training.replay import compared, differences, earlier_steps, reasons

HERE: dict[str, Any] = {
    "world_size": 2,
    "device": "A",
    "versions": {"torch": "2.13.0", "shardline": "1", "commit": None},
}


def test_figures_are_compared_to_the_bit() -> None:
    then, now = {"loss": 1.0, "gradient_norm": 2.0}, {"step": 3, "loss": 1.0, "gradient_norm": 2.0}
    assert compared(then, now)[1]
    lines, is_same = compared(then, {**now, "loss": 1.0000000000000002})
    assert not is_same and lines[0].endswith("replayed: differs by 2.22e-16") and lines[1].endswith("equal to the bit")


def test_what_differs_from_the_attempt_that_took_the_step_is_named() -> None:
    attempt = {"step": 0, "world_size": 4, "device": "B", "versions": {"torch": "2.12.0", "shardline": "1"}}
    told = differences(attempt, HERE)
    assert told == ["ranks: then 4, now 2", "hardware: then B, now A", "torch: then 2.12.0, now 2.13.0"]
    assert reasons(told, attempt)[1:] == [f"  {line}" for line in told]


def test_what_explains_nothing_and_what_is_not_known_is_said_too() -> None:
    assert "do not explain it" in reasons([], {"step": 0, **HERE})[0]
    assert "were not recorded" in reasons([], {"step": 0, "world_size": 2})[0]
    assert earlier_steps({"step": 8}, loaded=8) == []
    assert "from the checkpoint after step 4, as the one after step 8" in earlier_steps({"step": 8}, loaded=4)[0]
