"""Initial weights, a span at a time: read from a folder, or made by the model's own initialization."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from cluster.errors import CheckpointError
from training.models.buffers import made_buffers, stored_buffers
from training.models.initial_weights import PretrainedWeights
from training.models.new_weights import NewWeights
from training.models.source import skeleton_of

LAYERS, WIDTH = 3, 64
CONFIGS = {
    "llama": {"hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": 4},
    "gpt2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4},
    "qwen3": {
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
}
BUFFERED: dict[str, dict[str, Any]] = {
    "gemma2": {**CONFIGS["qwen3"], "num_hidden_layers": 1},
    "falcon_h1": {
        **CONFIGS["qwen3"],
        "num_hidden_layers": 1,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
    },
    "gpt_neo": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gemma3n_text": {
        **CONFIGS["qwen3"],
        "num_hidden_layers": 1,
        "vocab_size_per_layer_input": 9,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "layer_types": ["full_attention"],
        "activation_sparsity_pattern": [0.0],
    },
}


def plain_skeleton(**changes: Any) -> PreTrainedModel:
    """A model without decoder layers: an embedding, a norm and a head."""
    values = {**CONFIGS["llama"], "vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 0, **changes}
    return skeleton_of(AutoConfig.for_model("llama", **values))


PLAIN = plain_skeleton()
SHAPES = {name: tuple(parameter.shape) for name, parameter in PLAIN.named_parameters()}


def tensors_of(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def folder_of(folder: Path, tensors: dict[str, torch.Tensor], files: int = 1) -> Path:
    """Write the tensors as a model's folder of one or several files."""
    places: dict[str, str] = {}
    names = list(tensors)
    for number in range(files):
        chosen = names[number::files]
        name = "model.safetensors" if files == 1 else f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        save_file({key: tensors[key] for key in chosen}, folder / name)
        places |= dict.fromkeys(chosen, name)
    if files > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def read_all(weights: PretrainedWeights, shapes: dict[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        weights.part(name, shape, 0, math.prod(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("files", [1, 2])
def test_the_parts_of_a_tensor_joined_are_the_tensor_wherever_it_is_cut(
    tmp_path: Path, dtype: torch.dtype, files: int
) -> None:
    tensors = tensors_of(dtype)
    weights = PretrainedWeights(folder_of(tmp_path, tensors, files), PLAIN)

    @given(name=st.sampled_from(list(SHAPES)), cuts=st.lists(st.integers(0, 104), max_size=6))
    def check(name: str, cuts: list[int]) -> None:
        tensor = tensors[name]
        edges = [0, *sorted(min(cut, tensor.numel()) for cut in cuts), tensor.numel()]
        parts = [weights.part(name, SHAPES[name], a, b) for a, b in pairwise(edges)]
        assert torch.equal(torch.cat(parts).reshape(tensor.shape), tensor)

    check()
    read_all(weights, SHAPES)
    weights.finish(elsewhere=())


def test_a_parameter_that_the_folder_has_not_is_named(tmp_path: Path) -> None:
    weights = PretrainedWeights(folder_of(tmp_path, tensors_of(torch.float32)), PLAIN)
    with pytest.raises(CheckpointError, match=r"has no weights for the parameter model\.layers\.0\.weight"):
        weights.part("model.layers.0.weight", (3, 3), 0, 9)


def test_a_parameter_of_another_shape_is_told_both_shapes(tmp_path: Path) -> None:
    weights = PretrainedWeights(folder_of(tmp_path, tensors_of(torch.float32)), PLAIN)
    with pytest.raises(
        CheckpointError, match=r"model\.embed_tokens\.weight has shape \(13, 8\), .* asks for \(8, 13\)"
    ):
        weights.part("model.embed_tokens.weight", (8, 13), 0, 104)


def test_tensors_that_nobody_asked_for_are_counted_and_named(tmp_path: Path) -> None:
    weights = PretrainedWeights(folder_of(tmp_path, tensors_of(torch.float32)), PLAIN)
    read_all(weights, {"model.embed_tokens.weight": (13, 8)})
    with pytest.raises(
        CheckpointError, match=r"the model has no parameter for 2 of the stored tensors: lm_head\.weight, model\.norm"
    ):
        weights.finish(elsewhere=())


def test_a_folder_without_safetensors_says_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"neither model\.safetensors nor .*; convert the model with .*save_pretrained"
    ):
        PretrainedWeights(tmp_path, PLAIN)


def test_a_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    path = folder_of(tmp_path, tensors_of(torch.float32)) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_all(PretrainedWeights(tmp_path, PLAIN), SHAPES)


@pytest.mark.parametrize("content", [b"", b"\x10", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"])
def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        PretrainedWeights(tmp_path, PLAIN)


def test_other_files_beside_the_models_are_not_read(tmp_path: Path) -> None:
    folder_of(tmp_path, tensors_of(torch.float32), files=2)
    for name in ("consolidated.safetensors", "adapter_model.safetensors"):
        save_file({"norm.weight": torch.zeros(3)}, tmp_path / name)
    weights = PretrainedWeights(tmp_path, PLAIN)
    read_all(weights, SHAPES)
    weights.finish(elsewhere=())
    assert weights.tensors.keys() == SHAPES.keys()


def test_a_file_that_the_index_names_and_that_is_missing_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path, tensors_of(torch.float32), files=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of the 2 files it names are missing: model-00002-of-00002"):
        PretrainedWeights(tmp_path, PLAIN)


def test_quantized_weights_are_refused_in_words_of_their_own(tmp_path: Path) -> None:
    folder_of(tmp_path, tensors_of(torch.float32))
    skeleton = plain_skeleton(quantization_config={"quant_method": "fp8"})
    with pytest.raises(CheckpointError, match=r"quantized weights \(fp8\), which cannot be trained; use"):
        PretrainedWeights(tmp_path, skeleton)


def test_tied_tensors_that_differ_in_the_files_are_refused(tmp_path: Path) -> None:
    weights = PretrainedWeights(
        folder_of(tmp_path, tensors_of(torch.float32)), plain_skeleton(tie_word_embeddings=True)
    )
    with pytest.raises(
        CheckpointError, match=r"the files hold two different tensors; set tie_word_embeddings to false"
    ):
        weights.part("model.embed_tokens.weight", (13, 8), 0, 104)


def test_a_tied_embedding_may_be_stored_under_the_heads_name(tmp_path: Path) -> None:
    tensors = tensors_of(torch.float32)
    tensors.pop("model.embed_tokens.weight")
    weights = PretrainedWeights(folder_of(tmp_path, tensors), plain_skeleton(tie_word_embeddings=True))
    found = weights.part("model.embed_tokens.weight", (13, 8), 0, 104)
    assert torch.equal(found, tensors["lm_head.weight"].reshape(-1))
    weights.finish(elsewhere=["model.norm.weight"])


def test_a_rank_reads_only_the_experts_that_its_part_lies_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("mixtral", **CONFIGS["llama"], vocab_size=13, num_local_experts=5)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    weights = PretrainedWeights(tmp_path, skeleton_of(config))
    unreadable = {
        name: replace(tensor, kind="F8_E4M3")
        for name, tensor in weights.tensors.items()
        if ".experts." in name and not any(f".experts.{number}." in name for number in (1, 2))
    }
    weights.tensors |= unreadable
    fused = model.get_parameter("model.layers.0.mlp.experts.gate_up_proj").detach()
    expert = fused[0].numel()
    found = weights.part("model.layers.0.mlp.experts.gate_up_proj", tuple(fused.shape), expert + 5, 3 * expert - 7)
    assert torch.equal(found, fused.reshape(-1)[expert + 5 : 3 * expert - 7])
    with pytest.raises(CheckpointError, match=r"experts\.3\.w1\.weight has type F8_E4M3"):
        weights.part("model.layers.0.mlp.experts.gate_up_proj", tuple(fused.shape), expert, 3 * expert + 1)


def test_an_expert_that_is_missing_is_a_wrong_shape(tmp_path: Path) -> None:
    config = AutoConfig.for_model("mixtral", **CONFIGS["llama"], vocab_size=13, num_local_experts=3)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.block_sparse_moe.experts.1.w1.weight"]
    weights = PretrainedWeights(folder_of(tmp_path, tensors), skeleton_of(config))
    with pytest.raises(CheckpointError, match=r"gate_up_proj has shape \(2, 256, 64\), .* asks for \(3, 256, 64\)"):
        weights.part("model.layers.0.mlp.experts.gate_up_proj", (3, 256, 64), 0, 1)


@pytest.mark.parametrize("head", ["absent", "present"])
def test_a_head_that_is_tied_to_the_embedding_may_be_in_the_file_or_not(tmp_path: Path, head: str) -> None:
    config = AutoConfig.for_model("llama", **CONFIGS["llama"], vocab_size=99, tie_word_embeddings=True)
    skeleton = skeleton_of(config)
    tensors = {name: torch.randn(parameter.shape) for name, parameter in skeleton.named_parameters()}
    embedding = tensors["model.embed_tokens.weight"]
    if head == "present":
        tensors["lm_head.weight"] = embedding.clone()
    weights = PretrainedWeights(folder_of(tmp_path, tensors), skeleton)
    read_all(weights, {name: tuple(parameter.shape) for name, parameter in skeleton.named_parameters()})
    weights.finish(elsewhere=())
    found = weights.part("model.embed_tokens.weight", (99, WIDTH), 0, 99 * WIDTH)
    assert torch.equal(found, embedding.reshape(-1))


def test_a_file_saved_without_the_head_has_names_without_the_models_prefix(tmp_path: Path) -> None:
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors_of(torch.float32).items()}
    weights = PretrainedWeights(folder_of(tmp_path, tensors), PLAIN)
    found = weights.part("model.embed_tokens.weight", (13, 8), 0, 104)
    assert torch.equal(found, tensors["embed_tokens.weight"].reshape(-1))
    read_all(weights, SHAPES)
    weights.finish(elsewhere=())


def new_config(model_type: str) -> PretrainedConfig:
    return AutoConfig.for_model(
        model_type, **CONFIGS[model_type], vocab_size=301, pad_token_id=None, bos_token_id=0, eos_token_id=1
    )


def whole(weights: NewWeights, skeleton: PreTrainedModel, names: list[str] | None = None) -> dict[str, torch.Tensor]:
    shapes = {name: parameter.shape for name, parameter in skeleton.named_parameters()}
    return {
        name: weights.part(name, tuple(shapes[name]), 0, shapes[name].numel()).reshape(shapes[name]).clone()
        for name in names or shapes
    }


@pytest.fixture(scope="module", params=list(CONFIGS))
def skeleton(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    yield skeleton_of(new_config(request.param))


def test_new_weights_are_the_same_whatever_the_order_of_asking(skeleton: PreTrainedModel) -> None:
    expected = whole(NewWeights(skeleton, seed=1), skeleton)

    @given(names=st.permutations(list(expected)), state=st.integers(0, 99))
    def check(names: list[str], state: int) -> None:
        torch.manual_seed(state)
        found = whole(NewWeights(skeleton, seed=1), skeleton, names[:4])
        assert all(torch.equal(found[name], expected[name]) for name in found)

    check()


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_new_weights_are_the_same_however_many_ranks_they_are_cut_for(
    skeleton: PreTrainedModel, world_size: int
) -> None:
    expected = whole(NewWeights(skeleton, seed=1), skeleton)
    ranks = [NewWeights(skeleton, seed=1) for _ in range(world_size)]
    for name, tensor in expected.items():
        size = -(-tensor.numel() // world_size)
        cuts = [min(rank * size, tensor.numel()) for rank in range(world_size + 1)]
        parts = [w.part(name, tuple(tensor.shape), cuts[r], cuts[r + 1]) for r, w in enumerate(ranks)]
        assert torch.equal(torch.cat(parts), tensor.reshape(-1))


def test_new_weights_are_spread_as_transformers_spreads_those_of_a_whole_model(skeleton: PreTrainedModel) -> None:
    made = whole(NewWeights(skeleton, seed=1), skeleton)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(skeleton.config)
    for name, parameter in model.named_parameters():
        expected = parameter.detach()
        assert float(made[name].std()) == pytest.approx(float(expected.std()), rel=0.15), name
        if expected.ndim == 1:
            assert torch.equal(made[name], expected), name


def test_new_matrices_follow_the_initializer_range_and_norms_are_ones(skeleton: PreTrainedModel) -> None:
    made = whole(NewWeights(skeleton, seed=1), skeleton)
    embedding = next(tensor for name, tensor in made.items() if "embed" in name or "wte" in name)
    assert float(embedding.std()) == pytest.approx(skeleton.config.initializer_range, rel=0.05)
    norms = [tensor for name, tensor in made.items() if ("norm" in name or "ln_" in name) and "weight" in name]
    assert norms and all(torch.equal(norm, torch.ones_like(norm)) for norm in norms)


def test_decoder_layers_begin_different_from_each_other(skeleton: PreTrainedModel) -> None:
    made = whole(NewWeights(skeleton, seed=1), skeleton)
    layers = [[t for name, t in made.items() if f".{n}." in name and t.ndim == 2] for n in range(LAYERS)]
    assert all(layers)
    for first, second in pairwise(layers):
        assert all(float((a - b).abs().max()) > 0 for a, b in zip(first, second, strict=True))


def test_another_seed_makes_other_matrices(skeleton: PreTrainedModel) -> None:
    first, second = (whole(NewWeights(skeleton, seed=seed), skeleton) for seed in (1, 2))
    assert not any(torch.equal(first[name], second[name]) for name in first if first[name].ndim == 2)


def test_making_weights_leaves_the_random_state_and_the_skeleton_as_they_were(skeleton: PreTrainedModel) -> None:
    before = torch.get_rng_state()
    whole(NewWeights(skeleton, seed=1), skeleton)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.is_meta for parameter in skeleton.parameters())


def test_a_routers_balance_is_read_from_the_files_and_stays_in_fp32(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "deepseek_v3",
        **CONFIGS["llama"],
        vocab_size=13,
        num_key_value_heads=4,
        moe_intermediate_size=8,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    name = "model.layers.2.mlp.gate.e_score_correction_bias"
    balance = model.get_buffer(name).copy_(torch.tensor([1.001, -2.0, 3.0, 0.1]))
    model.save_pretrained(tmp_path)
    skeleton = skeleton_of(config)
    found = stored_buffers(skeleton, PretrainedWeights(tmp_path, skeleton), torch.bfloat16)
    assert found.keys() == {name}
    assert torch.equal(found[name], balance)  # bf16 has no 1.001


@pytest.mark.parametrize("model_type", ["gemma2", "falcon_h1", "gpt_neo", "gemma3n_text"])
def test_buffers_that_are_in_no_file_are_those_of_transformers(model_type: str) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, vocab_size=9, **BUFFERED[model_type]))
    made, stored = made_buffers(skeleton_of(model.config)), model.state_dict().keys()
    expected = {name: buffer for name, buffer in model.named_buffers() if name not in stored}
    assert made.keys() == expected.keys()
    assert all(
        made[name].dtype == buffer.dtype and torch.equal(made[name], buffer) for name, buffer in expected.items()
    )
