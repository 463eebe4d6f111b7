"""Activation checkpointing changes what is kept for backward, and nothing of what is computed."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cluster.errors import ConfigError, TrainingError
from training.config import ActivationCheckpointing, LoraConfig, TrainConfig
from training.costs.memory import Layout, activations
from training.costs.shapes import shape_of_skeleton
from training.models.trainable import add_lora
from training.step import document_attention
from training.step.activation_checkpointing import checkpoint_activations
from training.step.batches import MicroBatch, micro_batch_of
from training.step.packed_model import PackedModel

KINDS: tuple[ActivationCheckpointing, ...] = ("none", "selective", "full")
TOKENS = 96
LLAMA = {
    "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": TOKENS, "pad_token_id": None,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama with LoRA": LLAMA,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.1, "attn_pdrop": 0.1},  # random numbers too
    "gemma2": {**LLAMA, "head_dim": 16, "sliding_window": 8},  # computes scores itself
    "mixtral": {**LLAMA, "num_local_experts": 4, "num_hidden_layers": 2},
}


def model_of(name: str, layers: int | None = None) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = {**MODELS[name], **({"num_hidden_layers": layers} if layers else {})}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name.split()[0], **settings, vocab_size=97))
        if "LoRA" in name:
            add_lora(model, LoraConfig(rank=4))
            torch.nn.init.normal_(dict(model.named_parameters())[LAST_UP])
    return model.train()


LAST_UP = "model.layers.2.mlp.down_proj.lora_B.default.weight"  # zeros at first, as all of them


def batch() -> MicroBatch:
    ids = torch.randint(2, 97, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    return micro_batch_of(ids, torch.ones_like(ids, dtype=torch.bool), [[40, 40, 16], [90, 6]], index=0)


def packed_of(model: PreTrainedModel, kind: ActivationCheckpointing) -> PackedModel:
    checkpoint_activations(model, kind)
    packed = PackedModel(model, model, torch.device("cpu"))
    packed.checkpointing = kind
    return packed


def gradients(name: str, kind: ActivationCheckpointing) -> dict[str, torch.Tensor]:
    model = model_of(name)
    torch.manual_seed(7)
    torch.autograd.backward(packed_of(model, kind).loss(batch()).trained())
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_same_bits_whatever_is_computed_again(name: str) -> None:
    expected = gradients(name, "none")
    for kind in KINDS[1:]:
        found = gradients(name, kind)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[parameter], expected[parameter]) for parameter in expected)


def bytes_kept(layers: int, kind: ActivationCheckpointing) -> int:
    """Return the bytes of the allocator that a forward pass leaves for backward.

    The garbage collector runs before and after it, not when it likes: what it frees would be counted.
    """
    packed = packed_of(model_of("llama", layers).to(torch.bfloat16), kind)
    rows = batch()
    document_attention.attending(rows.segments)
    gc.collect()
    with torch.profiler.profile(profile_memory=True) as profile:
        hidden = packed.model.model(rows.input_ids, use_cache=False)
        gc.collect()
    assert hidden.last_hidden_state.requires_grad
    return sum(event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_that_a_layer_keeps_is_predicted(kind: ActivationCheckpointing) -> None:
    measured = (bytes_kept(5, kind) - bytes_kept(2, kind)) / 3
    shapes = [shape_of_skeleton(model, model.config) for model in (model_of("llama", 5), model_of("llama", 2))]
    layout = Layout(ranks=1, stage=1, micro_batch_rows=2, row_tokens=TOKENS, checkpointing=kind)
    of_five, of_two = (activations(shape, layout) for shape in shapes)
    random_state = 0 if kind == "none" else torch.get_rng_state().nbytes  # of a layer, whatever its size
    assert (of_five - of_two) / 3 == pytest.approx(measured - random_state, rel=0.10)


def operations(kind: ActivationCheckpointing) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    packed = packed_of(model_of("llama"), kind)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(packed.loss(batch()).trained())
    return int(counter.get_total_flops())


def test_selective_computes_no_product_again_and_full_does() -> None:
    none, selective, full = map(operations, KINDS)
    assert none == selective < 0.9 * full


def test_a_model_that_ignores_what_it_was_told_is_noticed_in_its_first_step() -> None:
    model = model_of("llama")
    packed = packed_of(model, "full")
    for module in model.modules():
        module.gradient_checkpointing = False
    with pytest.raises(TrainingError, match="keeps all activations in spite of it"):
        packed.loss(batch())


def test_a_model_without_checkpointing_is_refused() -> None:
    model = model_of("llama")
    model.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match=r"activation_checkpointing: full: .*; set none"):
        checkpoint_activations(model, "full")


@pytest.mark.parametrize(("given", "kind"), [(True, "full"), (False, "none"), ("selective", "selective")])
def test_true_and_false_are_still_read(given: object, kind: str) -> None:
    assert TrainConfig.model_validate({"activation_checkpointing": given}).activation_checkpointing == kind
