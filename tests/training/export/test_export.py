"""A checkpoint leaves as a Hugging Face folder bit for bit, in the memory of a chunk, or not at all."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cluster.errors import CheckpointError
from training.checkpoints.layout import read_commit, stored_state
from training.checkpoints.shard_files import StoredState
from training.config import ExportConfig, LoraConfig
from training.export import exported_weights
from training.export.export import Partial, check_loads, export
from training.export.exported_weights import ConvertedWeights, check_bits, write_tensors
from training.models.name_conversions import Outgoing, outgoing
from training.models.source import ModelOrigin, skeleton_of

ROOT = Path(__file__).resolve().parents[3]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}  # compared as integers: a NaN is not equal to itself


@pytest.fixture(params=["untied", "tied"])
def origin(request: pytest.FixtureRequest, tiny_model: Path) -> ModelOrigin:
    config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=request.param == "tied")
    return ModelOrigin(config=config, tokenizer=AutoTokenizer.from_pretrained(tiny_model), folder=tiny_model)


def weights_of(origin: ModelOrigin) -> dict[str, torch.Tensor]:
    """Return weights of every kind of bits: what bf16 rounds, denormals, infinities, both zeros and a NaN."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(parameter.shape, generator=generator)
        for name, parameter in origin.skeleton.named_parameters()
    }
    odd = torch.tensor([1e-40, -0.0, 0.0, math.inf, -math.inf, math.nan, 3e38, 1.00390625])
    next(iter(weights.values())).view(-1)[: len(odd)] = odd
    return weights


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as stored:
            found |= {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  (not a mapping)
    return found


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(BITS[tensor.dtype])


@pytest.fixture
def plain(tiny_model: Path) -> ModelOrigin:
    config = AutoConfig.from_pretrained(tiny_model)
    return ModelOrigin(config=config, tokenizer=AutoTokenizer.from_pretrained(tiny_model), folder=tiny_model)


def test_an_export_of_a_run_that_froze_weights_takes_them_from_the_models_origin(
    tmp_path: Path, plain: ModelOrigin, write_checkpoint: Callable[..., Path]
) -> None:
    trained = {name: tensor for name, tensor in weights_of(plain).items() if "layers.0" not in name}
    write_checkpoint(tmp_path / "checkpoints", trained, **{"frozen weights": plain.source_digest(0)})
    partial = Partial(origin=plain, seed=0, lora=None)
    export(plain, tmp_path / "checkpoints", ExportConfig(dtype="fp32"), tmp_path / "export", partial)
    base: dict[str, torch.Tensor] = dict(
        AutoModelForCausalLM.from_pretrained(plain.folder, dtype=torch.float32).named_parameters()
    )
    stored = stored_tensors(tmp_path / "export")
    assert stored.keys() == base.keys()
    for name, tensor in stored.items():
        assert torch.equal(bits(tensor), bits(trained.get(name, base[name]))), name


def test_an_export_of_a_run_with_low_rank_additions_holds_them_merged(
    tmp_path: Path, plain: ModelOrigin, write_checkpoint: Callable[..., Path]
) -> None:
    name = "model.layers.0.self_attn.q_proj"
    generator = torch.Generator().manual_seed(1)
    rows, columns = plain.skeleton.get_submodule(name).weight.shape
    low, high = torch.randn(4, columns, generator=generator), torch.randn(rows, 4, generator=generator)
    trained = {f"{name}.lora_A.default.weight": low, f"{name}.lora_B.default.weight": high}
    write_checkpoint(tmp_path / "checkpoints", trained, **{"frozen weights": plain.source_digest(0)})
    partial = Partial(origin=plain, seed=0, lora=LoraConfig(rank=4, alpha=8))
    export(plain, tmp_path / "checkpoints", ExportConfig(dtype="fp32"), tmp_path / "export", partial)
    base: dict[str, torch.Tensor] = dict(
        AutoModelForCausalLM.from_pretrained(plain.folder, dtype=torch.float32).named_parameters()
    )
    stored = stored_tensors(tmp_path / "export")
    assert torch.allclose(stored.pop(f"{name}.weight"), base[f"{name}.weight"] + 2 * (high @ low), atol=1e-6)
    assert all(torch.equal(bits(tensor), bits(base[other])) for other, tensor in stored.items())


def test_an_export_upon_other_frozen_weights_than_those_trained_with_is_refused(
    tmp_path: Path, plain: ModelOrigin, write_checkpoint: Callable[..., Path]
) -> None:
    trained = {name: tensor for name, tensor in weights_of(plain).items() if "layers.0" not in name}
    write_checkpoint(tmp_path / "checkpoints", trained, **{"frozen weights": "another"})
    partial = Partial(origin=plain, seed=0, lora=None)
    with pytest.raises(CheckpointError, match="trained on other frozen weights"):
        export(plain, tmp_path / "checkpoints", ExportConfig(), tmp_path / "export", partial)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("shard_bytes", [20_000, 10**9])
def test_an_export_holds_the_checkpoints_weights_bit_for_bit(
    tmp_path: Path,
    origin: ModelOrigin,
    write_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    shard_bytes: int,
) -> None:
    monkeypatch.setattr(exported_weights, "CHUNK_ELEMENTS", 100)  # most parameters take several
    weights = weights_of(origin)
    write_checkpoint(tmp_path / "checkpoints", weights)
    config = ExportConfig.model_validate({"dtype": dtype, "shard_bytes": shard_bytes})
    assert export(origin, tmp_path / "checkpoints", config, tmp_path / "export") == 5
    stored = stored_tensors(tmp_path / "export")
    model = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=DTYPES[dtype]).named_parameters())
    assert stored.keys() == model.keys() == weights.keys()
    for name, tensor in weights.items():
        expected = bits(tensor.to(DTYPES[dtype]))
        assert torch.equal(bits(stored[name]), expected)
        assert torch.equal(bits(model[name]), expected)
    assert (len(list((tmp_path / "export").glob("*.safetensors"))) > 1) == (shard_bytes == 20_000)


def test_the_index_of_several_files_says_where_every_tensor_is(
    tmp_path: Path, origin: ModelOrigin, write_checkpoint: Callable[..., Path]
) -> None:
    weights = weights_of(origin)
    write_checkpoint(tmp_path / "checkpoints", weights)
    export(origin, tmp_path / "checkpoints", ExportConfig(shard_bytes=20_000), tmp_path / "export")
    index = json.loads((tmp_path / "export" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == weights.keys()
    assert index["metadata"]["total_size"] == 2 * sum(tensor.numel() for tensor in weights.values())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "export" / file, framework="pt") as stored:
            assert name in stored.keys()  # noqa: SIM118  (not a mapping)


def test_a_damaged_checkpoint_is_not_exported_and_the_older_export_stays(
    tmp_path: Path, origin: ModelOrigin, write_checkpoint: Callable[..., Path]
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoints", weights_of(origin))
    export(origin, tmp_path / "checkpoints", ExportConfig(), tmp_path / "export")
    before = stored_tensors(tmp_path / "export")
    damaged = folder / "master-00001-of-00002.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-9] ^= 4
    damaged.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{damaged}: its sha256 is not the one in commit.json"):
        export(origin, tmp_path / "checkpoints", ExportConfig(), tmp_path / "export")
    after = stored_tensors(tmp_path / "export")
    assert all(torch.equal(bits(after[name]), bits(before[name])) for name in before)


def test_a_checkpoint_of_another_model_is_refused_by_its_first_difference(
    tmp_path: Path, origin: ModelOrigin, write_checkpoint: Callable[..., Path]
) -> None:
    weights = {**weights_of(origin), "model.norm.weight": torch.zeros(7)}
    write_checkpoint(tmp_path / "checkpoints", weights)
    with pytest.raises(CheckpointError, match=r"another model than the run's; first difference: model\.norm\.weight"):
        export(origin, tmp_path / "checkpoints", ExportConfig(), tmp_path / "export")
    assert not (tmp_path / "export").exists()


def in_bf16(state: StoredState, shapes: dict[str, list[int]]) -> ConvertedWeights:
    """A checkpoint's tensors as they are, rounded."""
    plan = {name: Outgoing(shape=tuple(shape), dtype=torch.bfloat16, source=name) for name, shape in shapes.items()}
    return ConvertedWeights(lambda name, start, out: state.read(f"master.{name}", start, out), plan)


@pytest.mark.parametrize("place", ["first", "last"])
def test_one_wrong_bit_in_what_was_written_is_found(
    tmp_path: Path, write_checkpoint: Callable[..., Path], place: str
) -> None:
    weights = {"a": torch.randn(300), "b": torch.randn(7, 11)}
    folder = write_checkpoint(tmp_path / "checkpoints", weights)
    path, shapes = tmp_path / "model.safetensors", {"a": [300], "b": [7, 11]}
    with stored_state(folder, read_commit(folder)) as state:
        converted = in_bf16(state, shapes)
        digests = write_tensors(path, shapes, converted)
        check_bits(path, converted.plan, digests)
        content = bytearray(path.read_bytes())
        content[-2 * 377 if place == "first" else -1] ^= 1
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{'a' if place == 'first' else 'b'} reads back differently"):
            check_bits(path, converted.plan, digests)


def test_an_export_that_transformers_cannot_fill_a_model_from_is_refused(
    tmp_path: Path, origin: ModelOrigin, write_checkpoint: Callable[..., Path]
) -> None:
    weights = weights_of(origin)
    checkpoint = write_checkpoint(tmp_path / "checkpoints", weights)
    export(origin, tmp_path / "checkpoints", ExportConfig(), tmp_path / "export")
    shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
    check_loads(tmp_path / "export", shapes, torch.bfloat16)
    fewer = {name: shape for name, shape in shapes.items() if name != "model.norm.weight"}
    with stored_state(checkpoint, read_commit(checkpoint)) as state:
        write_tensors(tmp_path / "export" / "model.safetensors", fewer, in_bf16(state, fewer))
    with pytest.raises(CheckpointError, match=r"does not load the export as written.*model\.norm\.weight"):
        check_loads(tmp_path / "export", shapes, torch.bfloat16)


def test_fused_experts_are_taken_apart_one_at_a_time() -> None:
    config = AutoConfig.for_model(
        "mixtral", hidden_size=64, intermediate_size=2048, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, num_local_experts=6, vocab_size=9,
    )  # fmt: skip
    asked: dict[str, list[tuple[int, int]]] = {}
    skeleton = skeleton_of(config)

    def read(name: str, start: int, out: torch.Tensor) -> torch.Tensor:
        asked.setdefault(name, []).append((start, out.numel()))
        return out.zero_()

    weights = ConvertedWeights(read, outgoing(skeleton, torch.bfloat16), skeleton)
    for name in weights.plan:
        assert sum(chunk.numel() for chunk in weights.chunks(name)) == math.prod(weights.plan[name].shape)
    expert = 2 * 2048 * 64  # w1 and w3, read together and once
    fused = "model.layers.0.mlp.experts.gate_up_proj"
    assert asked[fused] == [(number * expert, expert) for number in range(6)]


STREAMED = """
import sys, torch
from pathlib import Path
from training.checkpoints.layout import read_commit, stored_state
from training.models.name_conversions import Outgoing, outgoing
from training.export.export import single_threaded
from training.export.exported_weights import ConvertedWeights, check_bits, write_tensors
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
folder = Path(sys.argv[1])
shapes = read_commit(folder).shapes
plan = {name: Outgoing(shape=tuple(shape), dtype=torch.bfloat16, source=name) for name, shape in shapes.items()}
with single_threaded(), stored_state(folder, read_commit(folder)) as state:
    weights = ConvertedWeights(lambda name, start, out: state.read(f"master.{name}", start, out), plan)
    digests = write_tensors(folder / "first.safetensors", ["0"], weights)
    check_bits(folder / "first.safetensors", plan, digests)
    before = peak()
    digests = write_tensors(folder / "all.safetensors", shapes, weights)
    check_bits(folder / "all.safetensors", plan, digests)
    print(peak() - before)
"""


@pytest.mark.slow
def test_an_export_takes_no_more_memory_than_two_of_the_largest_tensors(
    tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    numel, count = 1 << 20, 24  # 24 tensors of 4 MB
    folder = write_checkpoint(tmp_path, {str(number): torch.full((numel,), float(number)) for number in range(count)})
    done = subprocess.run(
        [sys.executable, "-c", STREAMED, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) <= 2 * 4 * numel
