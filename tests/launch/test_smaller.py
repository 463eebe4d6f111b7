"""`export --quantize` and `export --gguf`: what is written is the export, and what is not is told."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from cluster.errors import CheckpointError, ConfigError
from launch.__main__ import main
from training.export.export_record import RECORD, read_record
from training.export.quantize import check_loads, scales
from training.export.quantized_layers import SCHEMES, check_stored_as_loaded, choose_layers
from training.generate.loading import load_export
from training.models.source import skeleton_of

Command = Callable[..., Any]  # returns a Result: see conftest.py

CONVERTER = Path(__file__).with_name("stand_in_converter.py")


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    run_yaml: Callable[..., Path],
    write_checkpoint: Callable[..., Path],
) -> Path:
    """Return the folder of an exported run that has held-out rows."""
    path = run_yaml(tmp_path_factory.mktemp("smaller"))
    weights = dict(AutoModelForCausalLM.from_pretrained(tiny_model).named_parameters())
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    write_checkpoint(path.parent / "run" / "checkpoints", {name: weight.detach() for name, weight in weights.items()})
    assert main(["export", str(path)]) == 0
    root.handlers[:] = handlers
    root.setLevel(level)
    return path


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """Return the YAML of a copy of the run, to damage."""
    shutil.copytree(run.parent / "run", tmp_path / "run")
    values = json.loads(run.read_text())
    (tmp_path / "run.yaml").write_text(json.dumps({**values, "folder": str(tmp_path / "run")}))
    return tmp_path / "run.yaml"


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantized_export_loads_as_it_stands_with_every_weight_near_the_exported_one(
    run: Path, shardline: Command, kind: str
) -> None:
    result = shardline("export", run, "--quantize", kind)
    folder = run.parent / "run" / f"export-{kind}"
    made = read_record(folder).made
    assert made is not None
    assert f"14 layers have {kind[-1]}-bit weights" in result.out
    assert abs(made["loss"]["after"] - made["loss"]["before"]) < 0.05
    assert made["kept"] == {"embeddings and output head": ["lm_head.weight", "model.embed_tokens.weight"]}
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    loaded(input_ids=torch.zeros(1, 1, dtype=torch.long))
    exported = dict(AutoModelForCausalLM.from_pretrained(run.parent / "run" / "export").named_parameters())
    ours, _ = load_export(folder)
    for name, weight in ours.named_parameters():
        assert torch.equal(weight, loaded.get_parameter(name))
        changed = name.removesuffix(".weight") in made["layers"]
        largest = float(exported[name].detach().abs().max())
        bound = largest * (0.5 / SCHEMES[kind].top + 2**-7) if changed else 0.0  # half a step, and bf16's own rounding
        assert float((weight - exported[name]).detach().abs().max()) <= bound
        assert torch.equal(weight, exported[name]) != changed


def test_a_changed_integer_is_found_where_the_model_is_loaded(run: Path, shardline: Command, tmp_path: Path) -> None:
    if not (run.parent / "run" / "export-int8").exists():  # the test above writes it
        assert shardline("export", run, "--quantize", "int8").code == 0
    export, folder = run.parent / "run" / "export", tmp_path / "int8"
    shutil.copytree(run.parent / "run" / "export-int8", folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    half_steps = {f"{layer}.weight": torch.zeros(1, 1) for layer in read_record(folder).made["layers"]}  # type: ignore[index]
    with pytest.raises(CheckpointError, match="within half a quantization step"):
        check_loads(export, folder, half_steps)
    data[-1] ^= 64
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="does not read back"):
        check_loads(export, folder, {name: torch.full((1, 1), 1e-2) for name in half_steps})


def test_no_weight_is_clipped_and_zeros_stay_zeros() -> None:
    for scheme in SCHEMES.values():
        weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
        weight[3] = 0
        found = scales(weight, scheme).float().repeat_interleave(scheme.group or 96, dim=1)
        assert (weight.float().abs() <= found * scheme.top).all()
        assert (found > 0).all()


def test_what_cannot_be_quantized_is_told_by_reason() -> None:
    from transformers import Qwen3MoeConfig

    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = skeleton_of(Qwen3MoeConfig(vocab_size=64, num_experts=4, moe_intermediate_size=32, head_dim=16, **sizes))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    choice = choose_layers(model, shapes, SCHEMES["int4"])
    assert choice.layers == ["model.layers.0.self_attn.o_proj"]  # 64 inputs; the others have 48
    assert {why: len(names) for why, names in choice.kept.items()} == {
        "embeddings and output head": 2,
        "inputs are no multiple of 32": 3,
        "not a linear layer of its own (experts, convolutions)": 3,
    }
    expert = "model.layers.0.mlp.experts.0.up_proj.weight"  # as the files hold it; transformers merges experts
    with pytest.raises(ConfigError, match=r"experts\.0\.up_proj.*merged on loading.*--gguf"):
        check_stored_as_loaded(model, {**shapes, expert: (32, 48)}, "int4")


def test_an_export_that_changed_or_is_outdated_gives_no_smaller_files(
    copied: Path, shardline: Command, write_checkpoint: Callable[..., Path]
) -> None:
    root = copied.parent / "run"
    (root / "export" / "README.md").write_text("a model card")
    (root / "export" / "notes").mkdir()
    (root / "export" / "notes" / "own.md").write_text("about Bob")
    assert shardline("export", copied, "--quantize", "int8").code == 0
    assert not {"README.md", "notes"} & {path.name for path in (root / "export-int8").iterdir()}
    config = root / "export" / "config.json"
    config.write_text(config.read_text() + "\n")
    shardline("export", copied, "--quantize", "int8").assert_refused("config.json: changed since", "export")
    weights = dict(AutoModelForCausalLM.from_pretrained(root / "export").named_parameters())
    write_checkpoint(root / "checkpoints", {name: weight.detach().float() for name, weight in weights.items()}, step=9)
    shardline("export", copied, "--gguf", "--converter", CONVERTER).assert_refused("of step 5, and there is", "step 9")
    result = shardline("export", copied)
    assert "export-int8 is of step 5, an earlier export" in result.err
    assert not (root / "export-gguf-bf16").exists()


def test_a_gguf_file_is_the_export_and_has_the_scores_that_its_merges_follow_from(
    run: Path, shardline: Command
) -> None:
    result = shardline("export", run, "--gguf", "--converter", CONVERTER)
    assert result.code == 0, result.err
    path = run.parent / "run" / "export-gguf-bf16" / "tiny-bf16.gguf"
    assert result.out.splitlines()[1] == str(path)
    made = read_record(path.parent).made or {}
    assert (made["tensors_compared"], made["converter"]) == (
        16,
        CONVERTER.name,
    )
    fields = GGUFReader(path).fields
    model = json.loads((run.parent / "run" / "export" / "tokenizer.json").read_text())["model"]
    scores = fields["tokenizer.ggml.scores"].contents()
    assert [scores[model["vocab"]["".join(merge)]] for merge in model["merges"]] == [
        -float(rank) for rank in range(len(model["merges"]))
    ]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("unknown", "refused the export (exit code 1): ERROR:hf-to-gguf:Model LlamaForCausalLM is not supported"),
        ("values", "does not hold the values of the export's model.layers.0.mlp.down_proj.weight"),
        ("tokens", "tokens differ, such as"),
        ("template", "has another chat template than the export"),
    ],
)
def test_a_converter_that_refuses_or_errs_leaves_no_file(
    run: Path, shardline: Command, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    monkeypatch.setenv("FAULT", fault)
    shardline("export", run, "--gguf", "f32", "--converter", CONVERTER).assert_refused(said)
    assert not list((run.parent / "run").glob("export-gguf-f32*"))


def test_without_a_converter_the_commands_that_install_it_are_told(
    run: Path, shardline: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    shardline("export", run, "--gguf").assert_refused("git clone", "pip install", "shardline export", "--converter")
    shardline("export", run, "--gguf", "--converter", tmp_path).assert_refused("no convert_hf_to_gguf.py there")
    shardline("export", run, "--converter", CONVERTER).assert_refused("is for --gguf")


def test_the_end_of_an_answer_that_llama_cpp_would_not_know_is_told(
    run: Path, shardline: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "end")
    result = shardline("export", run, "--gguf", "--converter", CONVERTER)
    assert "the model was trained to end them with ['</s>']" in result.err
    assert (run.parent / "run" / "export-gguf-bf16" / RECORD).is_file()
