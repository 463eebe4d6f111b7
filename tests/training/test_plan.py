"""The arithmetic of a run: batches, learning rates, and what makes it the same run."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from data_prep.shards import Manifest, ShardInfo
from training.config import TrainConfig
from training.plan import Plan, make_plan

HOW_IT_IS_DEALT: dict[str, Any] = {
    "micro_batch_rows": 2,
    "cpu_ranks": 3,
    "deepspeed": "other.json",
    "save_every_steps": 7,
    "validation_rows": 9,
    "validate_every_steps": 5,
    "keep_last": 9,
    "keep_every_steps": 500,
    "save_copy_gb": 0.0,
    "zero_stage": 2,
    "activation_checkpointing": True,
    "hpz": True,
    "compile": "layers",
    "attention": "sdpa",
    "loss_chunk_tokens": 7,
    "deterministic": False,
    "max_skipped_steps": 7,
    "max_rollbacks": 7,
    "hang_timeout_s": 7.0,
}
WHAT_IT_IS: dict[str, Any] = {
    "epochs": 2.0,
    "steps": 99,
    "global_batch_rows": 16,
    "learning_rate": 1.0,
    "warmup_fraction": 0.5,
    "schedule": "linear",
    "final_learning_rate_fraction": 0.0,
    "weight_decay": 0.5,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "adam_epsilon": 0.5,
    "clip_gradient_norm": None,
    "precision": "fp32",
    "freeze": ["*.bias"],
    "lora": {"rank": 8},
    "loss_spike_factor": None,
    "norm_spike_factor": None,
}


def manifest_of(rows: int, digest: str = "data") -> Manifest:
    shard = ShardInfo(
        path="train/a.arrow", rows=rows, tokens=rows * 60, trained_tokens=rows * 50, bytes=1, sha256=digest
    )
    return Manifest(
        version=1,
        config_digest="",
        tokenizer_digest="",
        template_digest="",
        row_tokens=64,
        vocab_size=320,
        packing="concat",
        files=[],
        splits={"train": [shard], "validation": []},
        documents={},
        tokens={},
        conversational=False,
    )


def plan_of(*, world_size: int = 1, rows: int = 100, seed: int = 0, digest: str = "data", **train: Any) -> Plan:
    config = TrainConfig(**{"global_batch_rows": 32, **train})
    return make_plan(config, manifest_of(rows, digest), parameters=1000, world_size=world_size, seed=seed)


@pytest.mark.parametrize(
    ("rows", "ranks", "micro", "said"),
    [
        (8, 3, 2, "4 of 12 places empty; none would be on 2 or 4 ranks, or with a global batch of 6 or 12 rows"),
        (6, 8, 1, "2 of 8 places empty; none would be on 6 ranks, or with a global batch of 8 rows"),
        (12, 2, 4, "4 of 16 places empty; none would be with micro_batch_rows 3, or on 1 or 3 ranks, or with a global"),
        (3, 2, 3, "3 of 6 places empty; none would be on 1 rank, or with a global batch of 6 rows"),
        (9, 2, 4, "7 of 16 places empty; none would be with a global batch of 8 or 16 rows"),
    ],
)
def test_a_plan_says_how_many_places_are_empty_and_what_leaves_none(
    rows: int, ranks: int, micro: int, said: str
) -> None:
    plan = plan_of(world_size=ranks, global_batch_rows=rows, micro_batch_rows=micro)
    assert f"             {said}" in plan.as_text()


def test_a_batch_that_divides_is_an_equation_and_says_nothing_of_places() -> None:
    text = plan_of(world_size=4, global_batch_rows=16, micro_batch_rows=2).as_text()
    assert "16 rows, 1,024 tokens = 4 ranks x 2 rows x 2 accumulation steps\nlength" in text


def test_a_batch_that_is_a_slip_of_the_keyboard_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"100,000,000 is more than 1,000 times the 538 rows of the training split"):
        plan_of(rows=538, global_batch_rows=10**8)


def test_an_empty_training_split_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="the training split has no rows; add documents, or lower"):
        plan_of(rows=0)


@given(world_size=st.integers(1, 64), micro=st.integers(1, 16), accumulation=st.integers(1, 16))
def test_ranks_micro_batches_and_accumulation_make_up_the_global_batch(
    world_size: int, micro: int, accumulation: int
) -> None:
    batch = world_size * micro * accumulation
    plan = plan_of(world_size=world_size, micro_batch_rows=micro, global_batch_rows=batch)
    assert plan.accumulation_steps == accumulation
    assert plan.division.empty_places == plan.division.idle_share == 0


@pytest.mark.parametrize(
    ("rows", "train", "steps"),
    [
        (100, {}, 4),
        (96, {}, 3),
        (100, {"epochs": 0.5}, 2),
        (1, {}, 1),
        (100, {"epochs": 3.0}, 10),
        (1, {"steps": 9}, 9),
    ],
)
def test_the_length_is_the_asked_steps_or_as_many_as_cover_the_epochs(
    rows: int, train: dict[str, Any], steps: int
) -> None:
    assert plan_of(rows=rows, **train).total_steps == steps


@given(
    steps=st.integers(1, 400),
    warmup=st.floats(0, 1),
    final=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "linear"]),
)
def test_the_learning_rate_rises_to_its_peak_then_falls_to_its_final_share(
    steps: int, warmup: float, final: float, schedule: str
) -> None:
    plan = plan_of(
        steps=steps,
        warmup_fraction=warmup,
        final_learning_rate_fraction=final,
        schedule=schedule,
        learning_rate=0.5,
    )
    rates = [plan.learning_rate(step) for step in range(steps + 1)]
    rising, falling = rates[: plan.warmup_steps], rates[plan.warmup_steps :]
    assert all(0 < before < after for before, after in pairwise(rising))
    assert all(before >= after for before, after in pairwise(falling))
    assert rising[-1:] in ([], [0.5])
    assert rates[-1] == pytest.approx(0.5 * final if plan.warmup_steps < steps else 0.5)


@given(step=st.integers(10, 99), final=st.floats(0, 1))
def test_a_constant_schedule_stays_at_its_peak_after_the_warm_up(step: int, final: float) -> None:
    plan = plan_of(steps=100, warmup_fraction=0.1, schedule="constant", final_learning_rate_fraction=final)
    assert plan.learning_rate(step) == plan.config.learning_rate


def test_a_checkpoint_is_due_every_so_many_steps_and_at_the_end() -> None:
    plan = plan_of(steps=10, save_every_steps=4)
    assert [step for step in range(1, 11) if plan.is_save_due(step)] == [4, 8, 10]


def test_the_disk_must_hold_what_stays_and_what_is_being_written() -> None:
    plan = plan_of(steps=100, save_every_steps=10, keep_last=2, keep_every_steps=50)
    assert plan.checkpoints_at_once() == 2 + 1 + 2
    assert plan_of(steps=10, save_every_steps=10).checkpoints_at_once() == 1


@given(world_size=st.integers(1, 64), micro=st.integers(1, 16))
def test_ranks_among_which_a_batch_does_not_divide_are_the_same_run(world_size: int, micro: int) -> None:
    assert plan_of(world_size=world_size, micro_batch_rows=micro).identity() == plan_of().identity()


@pytest.mark.parametrize("key", HOW_IT_IS_DEALT)
def test_a_run_may_be_dealt_and_saved_in_another_way_at_its_next_start(key: str) -> None:
    assert plan_of(world_size=4, **{key: HOW_IT_IS_DEALT[key]}).identity() == plan_of(world_size=1).identity()


@pytest.mark.parametrize("key", WHAT_IT_IS)
def test_a_run_with_another_setting_is_another_run_and_its_identity_names_the_setting(key: str) -> None:
    before, after = plan_of().identity(), plan_of(**{key: WHAT_IT_IS[key]}).identity()
    assert [name for name in before if before[name] != after[name]] == [f"train.{key}"]


def test_every_setting_of_a_run_is_known_to_be_part_of_its_identity_or_not() -> None:
    assert TrainConfig.model_fields.keys() == HOW_IT_IS_DEALT.keys() | WHAT_IT_IS.keys()


def test_other_data_and_another_seed_make_another_run() -> None:
    assert plan_of(seed=1).identity() != plan_of(seed=0).identity()
    assert plan_of(digest="other").identity() != plan_of(digest="data").identity()
