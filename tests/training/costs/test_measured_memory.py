"""The memory that is predicted, beside the bytes of real engines and the tensors that backward keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.training.rank_programs.memory_ranks import BUCKET
from training.costs.buckets import Buckets
from training.costs.memory import Layout, activations, layer_bytes_per_token, memory_of, state_of
from training.costs.shapes import ModelShape, Parameter, shape_of_config

RANKS, TOKENS = 2, 64


def measured_shape(facts: dict[str, Any]) -> ModelShape:
    parameters = tuple(Parameter(name, tuple(dims), trained) for name, (dims, trained) in facts["parameters"].items())
    shape = shape_of_config(facts["config"])
    assert shape is not None
    return ModelShape(**{**vars(shape), "parameters": parameters})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zero1-full", "zero2-full", "zero3-full", "zero3-lora"])
def test_weights_gradients_master_and_moments_are_those_of_a_real_engine(
    trial_of: Callable[..., Any], kind: str
) -> None:
    facts = trial_of(RANKS, "memory_ranks.py", rows=8).facts(f"memory-{kind}")
    shape = measured_shape(facts)
    stage = int(kind[4])
    state = state_of(shape, Layout(ranks=RANKS, stage=stage, micro_batch_rows=1, row_tokens=TOKENS))
    seen = facts["seen"]["gradients"]
    in_bf16 = shape.trained * 2 if stage == 1 else 0  # the last micro batch's own, beside the sum
    bucket = 2 * BUCKET if stage == 3 else 0
    slack = 4096  # scalars, rotary frequencies
    assert seen["float32"] == pytest.approx(
        state["master"] + state["moments"] + state["gradients"] - in_bf16, abs=slack
    )
    assert seen["bfloat16"] == pytest.approx(state["weights"] + in_bf16 + bucket, abs=slack)


def kept_for_backward(layers: int) -> int:
    """Return the bytes of the tensors, other than parameters, that a Llama of so many layers keeps for backward."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=176, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=32, max_position_embeddings=TOKENS, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    tensors: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        tensors.append(tensor)  # nothing may be freed and its address taken again
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        ids = torch.arange(TOKENS).remainder(32).reshape(1, -1)
        model(input_ids=ids, use_cache=False).logits.float().sum()
    return sum(kept.values())


def test_the_activations_of_a_layer_are_those_that_backward_keeps() -> None:
    shape = shape_of_config(
        {
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32,
        }
    )  # fmt: skip
    assert shape is not None
    measured = (kept_for_backward(3) - kept_for_backward(1)) / 2 / TOKENS
    assert layer_bytes_per_token(shape) == pytest.approx(measured, rel=0.10)


def test_the_peak_of_a_real_step_on_an_h200_is_predicted() -> None:
    """Llama 3.2 1B under ZeRO-3, a micro batch of 2 x 4,096 tokens: benchmarks/RESULTS.md, `gpu_step`."""
    shape = shape_of_config(
        {
            "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
        }
    )  # fmt: skip
    assert shape is not None
    layout = Layout(ranks=1, stage=3, micro_batch_rows=2, row_tokens=4096, buckets=Buckets())  # not sized then
    predicted = memory_of(shape, layout)
    for measured_mib in (38_417, 39_762):  # with smaller and larger chunks of the loss
        assert predicted.gpu / (1 << 20) == pytest.approx(measured_mib, rel=0.10)


def test_recomputation_keeps_the_input_of_each_layer_and_one_layer() -> None:
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 20}
    shape = shape_of_config({**config, "num_attention_heads": 4, "vocab_size": 32})
    assert shape is not None
    layout = Layout(ranks=1, stage=1, micro_batch_rows=2, row_tokens=TOKENS, checkpointing="full")
    assert activations(shape, layout) == 2 * TOKENS * (20 * 2 * 64 + layer_bytes_per_token(shape))
