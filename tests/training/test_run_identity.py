"""What makes another run, and how far the length of a run may change on the way."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import CheckpointError
from cluster.paths import RunPaths
from training.config import TrainConfig
from training.order import BY_WORK, IN_TURN
from training.plan import identity_of, make_schedule
from training.run_identity import check_identity, committed_identity, deal_of_run, trained_on_other_shards

ROWS = 100
FOLDER = Path("runs/t/checkpoints/step-000010")


def identity(**train: Any) -> dict[str, Any]:
    return identity_of(TrainConfig(global_batch_rows=10, **train), "data", 0)


def can_resume(then: dict[str, Any], now: dict[str, Any], steps_done: int) -> bool:
    try:
        check_identity(json.loads(json.dumps(then)), now, FOLDER, steps_done=steps_done, rows=ROWS)
    except CheckpointError:
        return False
    return True


lengths = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 60),
        "warmup_fraction": st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
        "schedule": st.sampled_from(["constant", "linear", "cosine"]),
    }
)


@given(lengths, lengths, st.integers(0, 60))
def test_a_run_can_be_resumed_with_another_length_exactly_if_every_step_taken_keeps_its_learning_rate(
    before: dict[str, Any], after: dict[str, Any], steps_done: int
) -> None:
    steps_done = min(steps_done, before["steps"])
    after = {**after, "schedule": before["schedule"]}
    schedules = [make_schedule(TrainConfig(global_batch_rows=10, **length), ROWS) for length in (before, after)]
    then, now = ([schedule.learning_rate(step) for step in range(steps_done)] for schedule in schedules)
    is_same = then == now and after["steps"] >= steps_done
    assert can_resume(identity(**before), identity(**after), steps_done) == (is_same or before == after)


@pytest.mark.parametrize("steps_done", [4, 10])
def test_a_run_with_a_constant_learning_rate_can_be_extended(steps_done: int) -> None:
    constant = {"schedule": "constant", "warmup_fraction": 0.0}
    assert can_resume(identity(epochs=1.0, **constant), identity(epochs=3.0, **constant), steps_done)


def test_the_same_length_in_other_words_is_the_same_run() -> None:
    assert can_resume(identity(epochs=2.0), identity(steps=20), 7)


def test_a_longer_warm_up_is_refused_with_the_setting_that_keeps_it() -> None:
    before = identity(steps=10, schedule="constant", warmup_fraction=0.2)
    with pytest.raises(CheckpointError, match=r"Step 1, which is done, had learning rate 1e-05; in a run of 40"):
        check_identity(
            before, identity(steps=40, schedule="constant", warmup_fraction=0.2), FOLDER, steps_done=10, rows=ROWS
        )
    with pytest.raises(CheckpointError, match=r"keep its warm-up of 2 steps: -o train\.warmup_fraction=0\.05\."):
        check_identity(
            before, identity(steps=40, schedule="constant", warmup_fraction=0.2), FOLDER, steps_done=10, rows=ROWS
        )
    assert can_resume(before, identity(steps=40, schedule="constant", warmup_fraction=0.05), 10)


def test_more_epochs_under_a_falling_learning_rate_are_a_new_run_whose_command_is_printed() -> None:
    with pytest.raises(CheckpointError) as caught:
        check_identity(identity(epochs=1.0), identity(epochs=2.0), FOLDER, steps_done=10, rows=ROWS)
    assert "cannot resume with another length: train.epochs was 1.0, is 2.0" in str(caught.value)
    assert "shardline export runs/t && shardline train new.yaml --from runs/t" in str(caught.value)


def test_a_length_below_the_steps_taken_is_refused() -> None:
    constant = {"schedule": "constant", "warmup_fraction": 0.0}
    with pytest.raises(CheckpointError, match="It has already taken 10 steps, more than 8"):
        check_identity(identity(steps=20, **constant), identity(steps=8, **constant), FOLDER, steps_done=10, rows=ROWS)


def test_another_setting_besides_the_length_makes_another_run() -> None:
    constant = {"schedule": "constant", "warmup_fraction": 0.0}
    assert not can_resume(identity(steps=10, **constant), identity(steps=20, weight_decay=0.5, **constant), 10)


def test_the_newest_readable_checkpoint_identifies_the_run(tmp_path: Path) -> None:
    for step, text in {5: '{"identity": {"seed": 1}, "step": 5}', 9: "{", 1_000_000: "[]"}.items():
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "commit.json").write_text(text)
    (tmp_path / "step-000011.partial").mkdir()
    assert committed_identity(tmp_path) == (tmp_path / "step-000005", {"seed": 1}, 5)
    assert committed_identity(tmp_path / "nowhere") is None


def manifest_with(*names: str) -> Any:
    return SimpleNamespace(others=[SimpleNamespace(path=name) for name in names])


SINCE, BEFORE = manifest_with("train/attention_work.npy"), manifest_with()


def test_a_run_deals_as_it_began_and_a_new_one_by_work_if_the_data_tells_it(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    assert deal_of_run(paths, SINCE) == BY_WORK
    assert deal_of_run(paths, BEFORE) == IN_TURN
    for record, deal in (({"seed": 0}, IN_TURN), ({"seed": 0, "deal": BY_WORK}, BY_WORK)):
        paths.plan.write_text(json.dumps(record))  # of a run without a checkpoint
        assert deal_of_run(paths, SINCE) == deal
    (paths.checkpoints / "step-000005").mkdir(parents=True)
    (paths.checkpoints / "step-000005" / "commit.json").write_text('{"identity": {"seed": 0}, "step": 5}')
    assert deal_of_run(paths, SINCE) == IN_TURN
    (paths.checkpoints / "step-000005" / "commit.json").write_text('{"identity": {"deal": 3}, "step": 5}')
    with pytest.raises(CheckpointError, match="dealt in way 3, this version knows 1 and 2"):
        deal_of_run(paths, SINCE)


def test_a_run_that_began_before_batches_were_dealt_by_work_is_the_same_run_only_if_dealt_in_turn() -> None:
    began = {key: value for key, value in identity().items() if key != "deal"}
    check_identity(began, identity_of(TrainConfig(global_batch_rows=10), "data", 0, IN_TURN), FOLDER)
    with pytest.raises(CheckpointError, match="deal was None, is 2"):
        check_identity(began, identity(), FOLDER)


def test_a_run_whose_shards_were_replaced_is_told_from_one_that_has_none_yet(tmp_path: Path) -> None:
    paths, manifest = RunPaths(tmp_path), SimpleNamespace(content_digest="new")
    assert trained_on_other_shards(paths, manifest) is None  # type: ignore[arg-type]
    (paths.checkpoints / "step-000005").mkdir(parents=True)
    for data, is_other in (("new", False), ("old", True)):
        commit = {"identity": {"data": data}, "step": 5}
        (paths.checkpoints / "step-000005" / "commit.json").write_text(json.dumps(commit))
        assert bool(trained_on_other_shards(paths, manifest)) == is_other  # type: ignore[arg-type]
