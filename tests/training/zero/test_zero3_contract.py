"""What we take for granted of DeepSpeed's ZeRO-3: a new version that breaks it fails here, loudly."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.training.rank_programs.bits import read_weights
from training.checkpoints.layout import newest_checkpoint, read_commit
from training.models.source import skeleton_of

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("ranks", [1, 2, 4])]
KINDS = ("master", "exp_avg", "exp_avg_sq")
STEP, LEARNING_RATE, WEIGHT_DECAY = 7, 1e-2, 0.1  # as in ranks.py
BETA1, BETA2, EPSILON = 0.9, 0.95, 1e-8
TrialOf = Callable[[int], Any]


def vocab_of(trial: Any) -> int:
    return int(trial.facts("one-step")["shapes"]["transformer.wte.weight"][0])


def test_the_parts_of_all_ranks_make_up_the_model_without_padding(trial_of: TrialOf, ranks: int) -> None:
    trial = trial_of(ranks)
    config = AutoConfig.for_model("gpt2", n_embd=5, n_layer=2, n_head=1, n_positions=64, vocab_size=vocab_of(trial))
    shapes = {name: parameter.shape for name, parameter in skeleton_of(config).named_parameters()}
    joined = trial.joined("one-step")
    assert {name: tuple(shape) for name, shape in trial.facts("one-step")["shapes"].items()} == shapes
    assert {key: len(value) for key, value in joined.items()} == {
        f"{kind}.{name}": math.prod(shape) for kind in KINDS for name, shape in shapes.items()
    }


def test_a_parameter_is_cut_into_equal_parts_and_the_last_ones_take_what_is_left(trial_of: TrialOf, ranks: int) -> None:
    parts = trial_of(ranks).by_rank("one-step")
    lengths = [len(rank["master.transformer.ln_f.weight"]) for rank in parts]
    assert lengths == {1: [5], 2: [3, 2], 4: [2, 2, 1, 0]}[ranks]


def test_one_step_moves_every_parameter_and_fills_every_moment(trial_of: TrialOf, ranks: int) -> None:
    joined = trial_of(ranks).joined("one-step")
    for key, tensor in joined.items():
        assert tensor.abs().max() > 0 or key.endswith(("attn.c_attn.bias",)), key


def test_small_parameters_stay_whole_on_every_rank_and_follow_the_update(trial_of: TrialOf, ranks: int) -> None:
    trial = trial_of(ranks)
    masters, shapes = trial.joined("one-step"), trial.facts("one-step")["shapes"]
    for whole in trial.by_rank("persistent"):
        assert set(whole) == {name for name, shape in shapes.items() if math.prod(shape) <= 200}  # as in ranks.py
        assert all(torch.equal(tensor.reshape(-1), masters[f"master.{name}"]) for name, tensor in whole.items())


def test_a_checkpoint_loads_back_bit_for_bit_though_some_parts_are_empty(trial_of: TrialOf, ranks: int) -> None:
    trial = trial_of(ranks)
    saved, loaded = trial.by_rank("one-step"), trial.by_rank("loaded")
    assert trial.facts("restored")["step"] == STEP
    for before, after in zip(saved, loaded, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_process_without_ranks_reads_the_weights_that_the_ranks_wrote(trial_of: TrialOf, ranks: int) -> None:
    trial = trial_of(ranks)
    folder = newest_checkpoint(trial.folder / "checkpoints")
    weights = read_weights(folder, read_commit(folder).shapes)
    joined = trial.joined("one-step")
    assert all(torch.equal(tensor.reshape(-1), joined[f"master.{name}"]) for name, tensor in weights.items())


def test_the_step_after_a_restart_is_adams_step_of_that_number(trial_of: TrialOf, ranks: int) -> None:
    trial = trial_of(ranks)
    before, after, shapes = trial.joined("loaded"), trial.joined("next-step"), trial.facts("loaded")["shapes"]
    for name, shape in shapes.items():
        first, second = after[f"exp_avg.{name}"].double(), after[f"exp_avg_sq.{name}"].double()
        decay = WEIGHT_DECAY if len(shape) >= 2 else 0.0
        update = first / (1 - BETA1 ** (STEP + 1)) / ((second / (1 - BETA2 ** (STEP + 1))).sqrt() + EPSILON)
        expected = before[f"master.{name}"].double() * (1 - LEARNING_RATE * decay) - LEARNING_RATE * update
        assert torch.allclose(after[f"master.{name}"].double(), expected, rtol=1e-5, atol=1e-7), name


def test_a_step_computes_one_norm_and_waits_for_its_device_once(trial_of: TrialOf, ranks: int) -> None:
    waits = trial_of(ranks).facts("waits")
    assert waits["norms"] == ["asked"] and waits["lists"] == ["asked"]
    assert {place.partition(":")[0] for place in waits["values"]} <= {"step_engine.py"}, waits["values"]  # of the list


def test_new_master_weights_are_used_once_they_are_refreshed_and_not_before(trial_of: TrialOf, ranks: int) -> None:
    trial = trial_of(ranks)
    facts = trial.facts("refresh")
    assert facts["unrefreshed"] == facts["before"]
    assert facts["refreshed"] == pytest.approx(facts["trained"] * math.log(vocab_of(trial)), rel=1e-6)


def test_the_weights_of_forward_have_the_precision_that_was_asked_for(trial_of: TrialOf, ranks: int) -> None:
    assert trial_of(ranks).facts("gradients-2-full")["dtypes"] == ["torch.float32"]
    assert trial_of(ranks).facts("bf16")["dtypes"] == ["torch.bfloat16"]


def test_position_frequencies_keep_full_precision_in_bf16(trial_of: TrialOf, ranks: int, tiny_model: Path) -> None:
    buffers = trial_of(ranks).by_rank("buffers")[-1]
    plain = dict(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).named_buffers())
    assert buffers.keys() == plain.keys()
    assert all(torch.equal(buffers[name], plain[name]) for name in plain)
