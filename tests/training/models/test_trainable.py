"""What is trained, chosen by patterns or by LoRA adapters, before any rank is started."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cluster.errors import CheckpointError, ConfigError
from training.config import LoraConfig, TrainConfig
from training.models.new_weights import NewWeights
from training.models.source import skeleton_of
from training.models.trainable import BASE, LORA_A, LORA_B, LoraWeights, PlainTensors, choose_trained

LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 50}


def model_of(model_type: str = "llama", **changes: Any) -> PreTrainedModel:
    sizes = {"llama": LLAMA, "gpt2": GPT2}[model_type]
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**sizes, **changes}))


def trained_names(model: PreTrainedModel) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_patterns_freeze_what_they_match_and_nothing_else() -> None:
    model = model_of()
    choose_trained(model, TrainConfig(freeze=["model.embed_tokens.*", "*.layers.0.*"]))
    assert not [name for name in trained_names(model) if ".layers.0." in name or "embed" in name]
    assert {"lm_head.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"} <= set(trained_names(model))


def test_a_pattern_that_matches_nothing_is_named_beside_names_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"'model\.embed\.\*' matches no parameter .* model\.embed_tokens\.weight"):
        choose_trained(model_of(), TrainConfig(freeze=["model.embed.*"]))


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is left to train"):
        choose_trained(model_of(), TrainConfig(freeze=["*"]))


def test_additions_go_to_every_linear_layer_but_the_head() -> None:
    model = model_of()
    choose_trained(model, TrainConfig(lora=LoraConfig(rank=2)))
    names = trained_names(model)
    assert all(LORA_A in name or LORA_B in name for name in names)
    assert len(names) == 2 * 7 * 2  # A and B, seven linear layers, two decoder layers
    assert not [name for name in names if "lm_head" in name or "embed" in name]


def test_additions_go_only_to_the_layers_that_are_named() -> None:
    model = model_of()
    choose_trained(model, TrainConfig(lora=LoraConfig(rank=2, target_modules=["q_proj"])))
    assert {name.split(".")[4] for name in trained_names(model)} == {"q_proj"}


def test_a_layer_that_the_model_has_not_is_a_problem_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"train\.lora\.target_modules: .*no_such_layer"):
        choose_trained(model_of(), TrainConfig(lora=LoraConfig(target_modules=["no_such_layer"])))


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("embed_tokens", r"model\.embed_tokens is of type Embedding; LoRA adapters are for linear layers"),
        ("experts", r"MixtralExperts.* is not supported"),
        ("gate", r"mlp\.gate is of type MixtralTopKRouter; LoRA adapters are for linear layers"),
        ("gate_up_proj", r"\{'gate_up_proj'\} not found"),
    ],
)
def test_additions_that_could_not_be_merged_are_refused_before_training(target: str, told: str) -> None:
    config = AutoConfig.for_model("mixtral", **LLAMA, num_key_value_heads=1, num_local_experts=2)
    with pytest.raises(ConfigError, match=told):
        choose_trained(skeleton_of(config), TrainConfig(lora=LoraConfig(target_modules=[target])))


def test_by_default_experts_and_their_router_get_no_additions() -> None:
    model = skeleton_of(AutoConfig.for_model("mixtral", **LLAMA, num_key_value_heads=1, num_local_experts=2))
    choose_trained(model, TrainConfig(lora=LoraConfig(rank=2)))
    assert {name.split(".")[4] for name in trained_names(model)} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_the_tower_for_images_is_frozen() -> None:
    text = {**LLAMA, "num_key_value_heads": 1, "head_dim": 8, "layer_types": ["full_attention"] * 2}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config={**vision, "image_size": 28})
    model = skeleton_of(config)
    choose_trained(model, TrainConfig())
    assert not [name for name in trained_names(model) if "vision" in name or "projector" in name]
    assert {"model.language_model.norm.weight", "model.language_model.embed_tokens.weight"} <= {*trained_names(model)}


def lora_weights(model: PreTrainedModel, seed: int) -> LoraWeights:
    return LoraWeights(NewWeights(skeleton_of(model.config), seed), seed)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_first_additions_do_not_depend_on_where_they_are_cut(model_type: str) -> None:
    model = model_of(model_type)
    choose_trained(model, TrainConfig(lora=LoraConfig(rank=3)))
    for name, parameter in model.named_parameters():
        shape, numel = tuple(parameter.shape), parameter.numel()
        whole = lora_weights(model, 1).part(name, shape, 0, numel)
        cut = [lora_weights(model, 1).part(name, shape, *ends) for ends in ((0, numel // 3), (numel // 3, numel))]
        assert torch.equal(torch.cat(cut), whole)
        if LORA_B in name:
            assert not whole.any()
        if LORA_A in name:
            assert float(whole.abs().max()) <= shape[1] ** -0.5
            assert not torch.equal(whole, lora_weights(model, 2).part(name, shape, 0, numel))


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_merging_gives_the_same_logits(model_type: str) -> None:
    lora = LoraConfig(rank=3, alpha=5.0)
    model, plain = model_of(model_type).eval(), model_of(model_type).eval()
    choose_trained(model, TrainConfig(lora=lora))
    first = lora_weights(plain, 1)
    values = {}
    for name, parameter in model.named_parameters():
        whole = first.part(name, tuple(parameter.shape), 0, parameter.numel()).reshape(parameter.shape)
        values[name] = whole + 0.3 * torch.randn_like(whole) if parameter.requires_grad else whole
        parameter.data.copy_(values[name])
    skeleton = skeleton_of(plain.config)
    tensors = PlainTensors(
        skeleton=skeleton, trained=trained_names(model), read=values.__getitem__, first=first.base, lora=lora
    )
    for name, parameter in plain.named_parameters():
        parameter.data.copy_(tensors.tensor(name))
    ids = torch.arange(8)[None]
    assert torch.allclose(model(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_tensor_without_a_place_is_named_also_with_additions(tmp_path: Any) -> None:
    from safetensors.torch import save_file

    from training.models.initial_weights import PretrainedWeights

    skeleton = skeleton_of(model_of().config)
    tensors = {name: torch.zeros(parameter.shape) for name, parameter in skeleton.named_parameters()}
    save_file({**tensors, "b.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    weights = LoraWeights(PretrainedWeights(tmp_path, skeleton), seed=0)
    with pytest.raises(CheckpointError, match=r"the model has no parameter for 1 of the stored tensors: b\.weight"):
        weights.finish(elsewhere=[name.replace("q_proj.", f"q_proj{BASE}") for name in tensors])


def test_freezing_and_additions_together_are_refused() -> None:
    with pytest.raises(ValueError, match="give one of 'freeze' and 'lora', not both"):
        TrainConfig(freeze=["*"], lora=LoraConfig())
