"""What cannot be trained, found from a folder's small files within a second: no torch, no weights."""

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
CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "Model")  # how such classes' names end
OTHER_FORMATS = {
    "*.gguf": "weights in llama.cpp's format",
    "params.json": "a model in its makers' own format",
    "model_index.json": "a diffusion pipeline",
    "*.nemo": "a NeMo archive",
}
CONVERT = (
    'python -c "from transformers import AutoModelForCausalLM as M;'
    " M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}')\""
)
POINTER = b"version https://git-lfs"


def check_trainable(folder: Path, *, weights: bool = True) -> None:
    """Raise ConfigError unless a folder holds a causal language model that can be trained.

    What needs transformers' own knowledge of the architecture is left to `check_architecture`.
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
        f"model.path: {folder} holds an adapter ({ADAPTER}) for {base}, not a whole model; merge them first:"
        f' python -c "from peft import AutoPeftModelForCausalLM as M;'
        f" M.from_pretrained('{folder}').merge_and_unload().save_pretrained('MERGED')\", copy the tokenizer's files"
        " there, and name that folder"
    )


def what_is_there(folder: Path) -> str:
    """Return the end of a message about a folder without a configuration: what it holds instead."""
    for pattern, kind in OTHER_FORMATS.items():
        if any(folder.glob(pattern)):
            return f": it holds {kind}; name a folder in transformers' format"
    inside = sorted(str(found.parent) for found in folder.glob(f"*/{CONFIG}"))
    if inside:
        return f"; did you mean {inside[-1]}?"
    return "; name the folder that holds a model's config.json and weights"


def check_task(folder: Path, settings: Settings) -> None:
    """Raise ConfigError for a model that was made for something else than to continue a text."""
    made_for = settings.get("architectures") or []
    if settings.get("is_encoder_decoder"):
        raise ConfigError(
            f"model.path: {folder} holds {named(settings)}, an encoder with a decoder; only causal language models, "
            "which continue a text, can be trained"
        )
    if made_for and not any(str(name).endswith(CAUSAL) for name in made_for):
        raise ConfigError(
            f"model.path: {folder} holds {named(settings)}, which is made for another task than to continue a text; "
            "name a causal language model (its config.json says ...ForCausalLM)"
        )


def named(settings: Settings) -> str:
    """Return what a model calls itself."""
    return f"{', '.join(map(str, settings.get('architectures') or ['a model']))} ({settings.get('model_type')})"


def check_not_quantized(folder: Path, settings: Settings) -> None:
    """Raise ConfigError for weights of a few bits: they have no gradient, and cannot be read as numbers."""
    text = settings.get("text_config")
    inner = text.get("quantization_config") if isinstance(text, dict) else None
    found = settings.get("quantization_config") or settings.get("compression_config") or inner
    if found:
        method = found.get("quant_method", "an unnamed method") if isinstance(found, dict) else found
        raise ConfigError(
            f"model.path: {folder} holds weights quantized by {method}, which cannot be trained; "
            "name the model that they were made from, in bf16, fp16 or fp32"
        )


def check_weights(folder: Path) -> None:
    """Raise ConfigError unless the weights are here, whole files in safetensors' format."""
    names = weight_files(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing == [WEIGHTS]:
        raise ConfigError(f"model.path: {folder} has no {WEIGHTS}{other_weights(folder)}")
    if missing:
        raise ConfigError(
            f"model.path: {folder} lacks {len(missing)} of the {len(names)} files that its index names: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}; copy or fetch them again"
        )
    for name in names:
        with (folder / name).open("rb") as stream:
            if stream.read(len(POINTER)) == POINTER:
                raise ConfigError(f"model.path: {folder / name} is a pointer of Git LFS; run `git lfs pull` there")


def other_weights(folder: Path) -> str:
    """Return the end of a message about a folder without safetensors: how to get some."""
    if any(folder.glob("pytorch_model*.bin")):
        return f", only pickled weights, which can run any code; if you trust them: {CONVERT.format(folder=folder)}"
    return "; put the model's weights there, as transformers' save_pretrained writes them"


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
            f"model.path: {folder} holds {named(settings)}, which transformers' AutoModelForCausalLM does not "
            "open; name a model of text alone (or of text and images, as Gemma 3) that it does"
        )
    if settings.get("auto_map"):
        raise ConfigError(
            f"model.path: {folder} holds {named(settings)}, a model that brings its own code (auto_map in {CONFIG}), "
            f"which is not run here, and transformers {__version__} has no class for it; a newer version may"
        )
    near = difflib.get_close_matches(str(kind), known, n=1)
    raise ConfigError(
        f"model.path: {folder / CONFIG} has the model_type {kind!r}, which transformers {__version__} does not know"
        f"{f' (the nearest is {near[0]!r})' if near else ''}; a newer version may"
    )


def causal_types() -> set[str]:
    """Return the types of which transformers has causal language models.

    They are read from the text of its module: to import it brings torch, which a machine that prepares need not have
    and which takes seconds. Should the text be another one some day, it is imported.
    """
    library = find_spec("transformers")
    text = Path(str(library.origin)).with_name("models") / "auto" / "modeling_auto.py" if library else Path()
    table = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
    for node in ast.parse(text.read_bytes()).body if text.is_file() else []:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [table]:
            pairs = [pair.elts[0] for pair in ast.walk(node.value) if isinstance(pair, ast.Tuple)]
            return {str(key.value) for key in pairs if isinstance(key, ast.Constant)}
    return set(importlib.import_module("transformers.models.auto.modeling_auto").__dict__[table])
