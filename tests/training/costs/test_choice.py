"""The ZeRO stage that is chosen by the memory that is there, and the sizes of buckets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.config import TrainConfig
from training.costs.buckets import Buckets, sized_buckets
from training.costs.choice import Choice, MachineMemory, choose
from training.costs.memory import Layout, memory_of
from training.costs.shapes import ModelShape, as_trained, shape_of_config

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "scale"
H200 = MachineMemory(gpu=150e9, host=1.8e12, ranks_per_host=8)


def shape_of(size: str) -> ModelShape:
    shape = shape_of_config(json.loads((EXAMPLES / f"llama-3.1-{size}" / "config.json").read_text()))
    assert shape is not None
    return shape


def layout_of(ranks: int, rows: int = 1) -> Layout:
    return Layout(ranks=ranks, stage=3, micro_batch_rows=rows, row_tokens=4096, checkpointing="full")


@pytest.mark.parametrize(
    ("size", "ranks", "stage", "offload"),
    [
        ("8b", 64, 1, "none"),
        ("8b", 8, 1, "none"),
        ("70b", 64, 3, "none"),
        ("70b", 8, 3, "all"),
        ("8b", 1, 2, "optimizer"),
    ],
)
def test_the_lowest_stage_that_fits_is_chosen(size: str, ranks: int, stage: int, offload: str) -> None:
    choice = choose(shape_of(size), layout_of(ranks), H200)
    assert (choice.stage, choice.offload, choice.fits) == (stage, offload, True)
    assert "the lowest that fits: " in choice.as_text()


def test_a_stage_of_the_yaml_is_kept() -> None:
    choice = choose(shape_of("8b"), layout_of(64), H200, stage=3)
    assert (choice.stage, choice.offload) == (3, "none")


def test_a_run_that_resumes_keeps_its_stage_while_it_fits() -> None:
    before = choose(shape_of("8b"), layout_of(64), H200, stage=3).as_record()
    assert choose(shape_of("8b"), layout_of(64), H200, before=before).stage == 3
    lowest = Choice(stage=1, offload="none", why="").as_record()
    assert choose(shape_of("70b"), layout_of(64), H200, before=lowest).stage == 3


def test_without_a_gpu_nothing_is_chosen() -> None:
    assert choose(shape_of("70b"), layout_of(2), None).as_record() == {"stage": 3, "offload": "none"}


def test_what_does_not_fit_is_told_and_stays_what_it_was() -> None:
    choice = choose(shape_of("405b"), layout_of(8), H200)
    assert (choice.stage, choice.offload, choice.fits) == (3, "none", False)
    assert "predicted not to fit" in choice.as_text()


def test_buckets_hold_a_layer_and_no_more_than_is_trained() -> None:
    shape = shape_of("8b")
    layer = sum(p.size for p in shape.parameters if p.name.startswith("model.layers.0."))
    sized = sized_buckets(shape)
    assert layer <= sized.reduce <= 500_000_000 and layer <= sized.prefetch
    adapters = as_trained(shape, TrainConfig.model_validate({"lora": {"rank": 8}}))
    assert sized_buckets(adapters).reduce == adapters.trained
    assert sized_buckets(shape_of("405b")).prefetch <= 500_000_000


def test_sized_buckets_take_less_memory_than_those_of_a_fixed_size() -> None:
    shape = as_trained(shape_of("8b"), TrainConfig.model_validate({"lora": {"rank": 8}}))
    sized, fixed = (
        memory_of(shape, Layout(ranks=8, stage=2, micro_batch_rows=1, row_tokens=64, buckets=buckets))
        for buckets in (None, Buckets())
    )
    assert sized.buckets < fixed.buckets / 5
