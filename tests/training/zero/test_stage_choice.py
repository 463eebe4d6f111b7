"""What a start tells of choices that round otherwise than those of the start before."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import ClusterError, ConfigError
from cluster.network.world import World
from training.config import TrainConfig
from training.zero.ds_config import template_for
from training.zero.stage_choice import before_changes, rounding_changes, train_as, with_hpz, zero_of

THREE = {"stage": 3, "offload": "none"}
SELECTIVE = ["activation_checkpointing"]


def record(zero: dict[str, Any] | None = THREE, **train: Any) -> dict[str, Any]:
    config = TrainConfig.model_validate(train).model_dump(mode="json")
    return {"config": config} if zero is None else {"config": config, "zero": zero}


def test_only_choices_that_round_otherwise_are_told() -> None:
    assert rounding_changes(record(), record(activation_checkpointing="full", hpz=True)) == {}
    changes = rounding_changes(record(), record({"stage": 1, "offload": "none"}, attention="sdpa", compile="layers"))
    assert changes == {
        "ZeRO": ("stage 3 with offload none", "stage 1 with offload none"),
        "train.compile": ("none", "layers"),
        "train.attention": ("auto", "sdpa"),
    }


def test_a_replay_has_the_settings_of_the_attempt_that_took_the_step() -> None:
    first = record(attention="sdpa", micro_batch_rows=2, deterministic=False)
    second = record({"stage": 1, "offload": "none"}, compile="layers", loss_chunk_tokens=64)
    events = [
        {"event": "rounding", "changed": {key: list(pair) for key, pair in rounding_changes(then, now).items()}}
        for then, now in ((first, second), (second, record()))
    ]
    then = before_changes(record(), events)
    assert rounding_changes(first, then) == {} and before_changes(record(), events[1:])["zero"]["stage"] == 1
    now = TrainConfig(activation_checkpointing="selective", zero_stage=2)
    of_second = train_as(now, before_changes(record(), events[1:]), asked=["loss_chunk_tokens"])
    assert (of_second.compile, of_second.zero_stage, of_second.loss_chunk_tokens) == ("layers", 1, None)
    of_first = train_as(now, then, asked=["zero_stage"])
    assert (of_first.attention, of_first.micro_batch_rows, of_first.zero_stage) == ("sdpa", 2, 2)
    assert of_second.deterministic and not of_first.deterministic


def test_what_is_asked_of_a_replay_and_does_not_go_with_the_attempt_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"with those of -o: 1 problem to fix\n.*compile: layers"):
        train_as(TrainConfig(activation_checkpointing="selective"), record(compile="layers"), SELECTIVE)


def test_a_change_that_this_version_does_not_know_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"train\.fast was yes: not known to this version"):
        before_changes(record(), [{"event": "rounding", "changed": {"train.fast": ["yes", "no"]}}])


def test_a_run_from_before_there_was_a_choice_had_stage_3() -> None:
    old = {"config": {"deepspeed": None}}
    assert zero_of(old) == THREE and rounding_changes(old, record()) == {}
    assert zero_of({"config": {"deepspeed": "my.json"}}) is None


def test_hpz_needs_stage_3_and_does_nothing_on_one_node() -> None:
    train = TrainConfig(hpz=True)
    two_nodes = World(rank=0, size=4, local_rank=0, local_size=2, master=("", 0))
    with pytest.raises(ConfigError, match=r"train\.hpz: needs ZeRO stage 3"):
        with_hpz(template_for(2, "none"), train, two_nodes)
    one_node = World(rank=0, size=2, local_rank=0, local_size=2, master=("", 0))
    assert with_hpz(template_for(3, "none"), train, one_node) == template_for(3, "none")
