"""Refuse models that cannot be trained, within a second, by a folder's small files: needs no torch and no weights."""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from cluster.model_files import CONFIG, WEIGHTS, read_settings, weight_files

Settings = Mapping[str, Any]

ADAPTER = "adapter_config.json"
CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "Model")  # how names of causal classes end
OTHER_FORMATS = {
    "*.gguf": "weights in llama.cpp's format",
    "params.json": "a model in its publisher's own format",
    "model_index.json": "a diffusion pipeline",
    "*.nemo": "a NeMo archive",
}
CONVERT = (
    'python -c "from transformers import AutoModelForCausalLM as M;'
    " M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}')\""
)
NO_PEFT = "train.lora: needs peft, which is not installed here: pip install -e '.[lora]'"
POINTER = b"version https://git-lfs"


def missing_peft(*, lora: bool) -> str | None:
    """Return what to install if a run trains adapters, and the library for it is missing here."""
    return NO_PEFT if lora and find_spec("peft") is None else None


def check_trainable(folder: Path, *, weights: bool = True) -> None:
    """Raise ConfigError unless a folder holds a causal language model that can be trained.

    Whether transformers supports the architecture is checked by `check_architecture`.
    """
    check_no_adapter(folder)
    settings = read_settings(folder / CONFIG)
    if not settings:
        raise ConfigError(f"model.path: {folder} has no {CONFIG}{what_is_there(folder)}")
    check_task(folder, settings)
    check_not_quantized(folder, settings)
    if weights:
        check_weights(folder)


def check_no_adapter(folder: Path) -> None:
    """Raise ConfigError for a low-rank adapter, which transformers would load on top of another model."""
    if not (folder / ADAPTER).is_file():
        return
    base = read_settings(folder / ADAPTER).get("base_model_name_or_path") or "its base model"
    raise ConfigError(
        f"model.path: {folder} holds an adapter ({ADAPTER}) for {base}, not a complete model; merge them first:"
        f' python -c "from peft import AutoPeftModelForCausalLM as M;'
        f" M.from_pretrained('{folder}').merge_and_unload().save_pretrained('MERGED')\", copy the tokenizer's files"
        " there, and name that folder"
    )


def what_is_there(folder: Path) -> str:
    """Return the end of a message about a folder without config.json: what it holds instead, and what to do."""
    for pattern, kind in OTHER_FORMATS.items():
        if any(folder.glob(pattern)):
            return f": it holds {kind}; name a folder in transformers' format"
    inside = sorted(str(found.parent) for found in folder.glob(f"*/{CONFIG}"))
    if inside:
        return f"; did you mean {inside[-1]}?"
    return "; name the folder that holds a model's config.json and weights"


def check_task(folder: Path, settings: Settings) -> None:
    """Raise ConfigError for a model that is not a causal language model."""
    made_for = settings.get("architectures") or []
    if settings.get("is_encoder_decoder"):
        raise ConfigError(
            f"model.path: {folder} holds {named(settings)}, an encoder-decoder; only causal language models can be "
            "trained: name one"
        )
    if made_for and not any(str(name).endswith(CAUSAL) for name in made_for):
        raise ConfigError(
            f"model.path: {folder} holds {named(settings)}, which is not a language model that continues a text; "
            "name a causal language model (its config.json says ...ForCausalLM)"
        )


def named(settings: Settings) -> str:
    """Return a model's classes and type, from its config.json, for a message."""
    return f"{', '.join(map(str, settings.get('architectures') or ['a model']))} ({settings.get('model_type')})"


def check_not_quantized(folder: Path, settings: Settings) -> None:
    """Raise ConfigError for quantized weights, which have no gradients."""
    text = settings.get("text_config")
    inner = text.get("quantization_config") if isinstance(text, dict) else None
    found = settings.get("quantization_config") or settings.get("compression_config") or inner
    if found:
        method = found.get("quant_method", "an unnamed method") if isinstance(found, dict) else found
        raise ConfigError(
            f"model.path: {folder} holds weights quantized by {method}, which cannot be trained; "
            "name the model they were quantized from, in bf16, fp16 or fp32"
        )


def check_weights(folder: Path) -> None:
    """Raise ConfigError unless all weight files are here, as safetensors."""
    names = weight_files(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing == [WEIGHTS]:
        raise ConfigError(f"model.path: {folder} has no {WEIGHTS}{other_weights(folder)}")
    if missing:
        raise ConfigError(
            f"model.path: {folder} lacks {len(missing)} of the {len(names)} files that its index names: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}; copy or fetch them"
        )
    for name in names:
        with (folder / name).open("rb") as stream:
            if stream.read(len(POINTER)) == POINTER:
                raise ConfigError(
                    f"model.path: {folder / name} is a Git LFS pointer, not weights; run `git lfs pull` there"
                )


def other_weights(folder: Path) -> str:
    """Return the end of a message about a folder without safetensors: how to get them."""
    if any(folder.glob("pytorch_model*.bin")):
        return f", only pickled weights, which can run any code; if you trust them: {CONVERT.format(folder=folder)}"
    return "; copy the model's weights there, as transformers' save_pretrained writes them"


def check_architecture(folder: Path) -> None:
    """Raise ConfigError unless this version of transformers has a causal language model of the folder's type."""
    settings = read_settings(folder / CONFIG)
    kind, known = settings.get("model_type"), causal_types()
    if kind in known:
        return
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if kind in CONFIG_MAPPING_NAMES:
        raise ConfigError(
            f"model.path: {folder} holds {named(settings)}, which transformers' AutoModelForCausalLM cannot "
            "load; name a model that it can load: of text, or of text and images like Gemma 3"
        )
    if settings.get("auto_map"):
        raise ConfigError(
            f"model.path: {folder} holds {named(settings)}, a model that ships its own code (auto_map in {CONFIG}), "
            f"which is never run here, and transformers {__version__} has no class for it; try a newer version"
        )
    near = difflib.get_close_matches(str(kind), known, n=1)
    raise ConfigError(
        f"model.path: {folder / CONFIG} has the model_type {kind!r}, which transformers {__version__} does not know"
        f"{f' (the nearest is {near[0]!r})' if near else ''}; correct it, or try a newer version"
    )


def causal_types() -> set[str]:
    """Return the model types that transformers has a causal language model for.

    They are parsed from the source of its module: importing it imports torch, which takes seconds and which a machine
    that only prepares data need not have. If the table is not found in the source, the module is imported.
    """
    library = find_spec("transformers")
    text = Path(str(library.origin)).with_name("models") / "auto" / "modeling_auto.py" if library else Path()
    table = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
    for node in ast.parse(text.read_bytes()).body if text.is_file() else []:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [table]:
            pairs = [pair.elts[0] for pair in ast.walk(node.value) if isinstance(pair, ast.Tuple)]
            return {str(key.value) for key in pairs if isinstance(key, ast.Constant)}
    return set(importlib.import_module("transformers.models.auto.modeling_auto").__dict__[table])
