"""What cannot be trained is told from its files, in one line, before anything is done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cluster.errors import ConfigError
from training.models.source import read_config
from training.models.untrainable import causal_types, check_architecture, check_trainable

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
CLASSIFIER = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "meta/llama"}
REMOTE = {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": {"AutoModel": "own.Own"}}
GPTQ = {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4}}
CAUSES = {
    "an encoder with a decoder": (
        {"config.json": T5},
        r"holds T5ForConditionalGeneration \(t5\), an encoder-decoder; only",
    ),
    "an encoder": ({"config.json": BERT}, r"BertForMaskedLM \(bert\), which is not a language model"),
    "a classifier": ({"config.json": CLASSIFIER}, r"LlamaForSequenceClassification \(llama\), which is not a lang"),
    "an adapter": (
        {"adapter_config.json": ADAPTER},
        r"holds an adapter .* for meta/llama, not a complete model; merge",
    ),
    "quantized": ({"config.json": GPTQ}, r"quantized by gptq, which cannot be trained; name the model they were"),
    "no config": ({"model.safetensors": ""}, r"has no config.json; name the folder that holds"),
    "no config here": ({"step-5/config.json": LLAMA}, r"has no config.json; did you mean .*/step-5\?"),
    "llama.cpp": ({"model.gguf": ""}, r"has no config.json: it holds weights in llama.cpp's format"),
    "no weights": ({"config.json": LLAMA}, r"has no model.safetensors; copy the model's weights there"),
    "pickled": ({"config.json": LLAMA, "pytorch_model.bin": ""}, r"only pickled weights.*: python -c \"from transform"),
    "half copied": (
        {"config.json": LLAMA, "model.safetensors.index.json": {"weight_map": {"a": "1-of-2", "b": "2-of-2"}}},
        r"lacks 2 of the 2 files that its index names: 1-of-2, 2-of-2; copy or fetch",
    ),
    "a pointer": (
        {"config.json": LLAMA, "model.safetensors": "version https://git-lfs.g"},
        r"is a Git LFS pointer, not weights; run",
    ),
    "damaged": ({"config.json": "{"}, r"config.json: cannot be read as JSON"),
}


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., Path]:
    def write(files: dict[str, Any]) -> Path:
        for name, content in files.items():
            path = tmp_path / "model" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path / "model"

    return write


@pytest.mark.parametrize("cause", CAUSES)
def test_what_cannot_be_trained_is_refused_with_what_it_is(folder_of: Callable[..., Path], cause: str) -> None:
    files, said = CAUSES[cause]
    with pytest.raises(ConfigError, match=said) as caught:
        check_trainable(folder_of(files))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (REMOTE, r"OwnForCausalLM \(own\), a model that ships its own code \(auto_map in config.json\)"),
        (
            {"model_type": "lama"},
            r"the model_type 'lama', which transformers .* does not know \(the nearest is 'llama'",
        ),
        ({**BERT, "model_type": "vit"}, r"which transformers' AutoModelForCausalLM cannot load"),
    ],
)
def test_an_architecture_that_transformers_cannot_make_is_named(
    folder_of: Callable[..., Path], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_architecture(folder_of({"config.json": settings}))


def test_the_types_that_are_read_from_transformers_text_are_those_that_it_has() -> None:
    assert causal_types() >= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert not causal_types() & {"t5", "vit", "clip"}


def test_a_folder_is_looked_at_without_torch(tiny_model: Path) -> None:
    code = "import sys; from pathlib import Path; from training.models.untrainable import *\n"
    code += f"check_trainable(Path({str(tiny_model)!r})); check_architecture(Path({str(tiny_model)!r}))\n"
    code += "print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_an_encoder_without_its_head_is_no_causal_model(folder_of: Callable[..., Path]) -> None:
    folder = folder_of({"config.json": {"model_type": "bert", "architectures": ["BertModel"]}})
    with pytest.raises(ConfigError, match=r"a bert that is an encoder \(is_decoder is false\)"):
        read_config(folder, weights=False)


def test_a_model_that_leaves_out_layers_by_chance_is_refused(folder_of: Callable[..., Path]) -> None:
    small = {"hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    folder = folder_of({"config.json": {"model_type": "opt", "layerdrop": 0.1, **small}})
    with pytest.raises(ConfigError, match=r"a opt with layerdrop 0\.1 drops layers at random"):
        read_config(folder, weights=False)


@pytest.mark.parametrize("kind", ["gpt_neox", "gemma3"])
def test_a_causal_model_is_none_of_these(folder_of: Callable[..., Path], kind: str) -> None:
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = {"model_type": kind, **({"text_config": small} if kind == "gemma3" else small)}
    assert read_config(folder_of({"config.json": config}), weights=False).model_type == kind


def test_the_command_that_converts_pickled_weights_does(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError) as caught:
        check_trainable(folder)
    exec(str(caught.value).rpartition('-c "')[2].rstrip('"'), {})  # noqa: S102  # what a person would paste
    check_trainable(folder)
    assert load_file(folder / "model.safetensors").keys() == load_file(tiny_model / "model.safetensors").keys()
