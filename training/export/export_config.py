"""config.json and generation_config.json of an export, with the keys of transformers 5 and, in addition, those of 4."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, __version__

from cluster.disk.atomic_files import write_json
from training.models.stop_tokens import stop_token_ids

log = logging.getLogger(__name__)

Values = dict[str, Any]
CONFIG, GENERATION = "config.json", "generation_config.json"
# The keys of transformers 4 for values that 5 keeps in `rope_parameters`. Which of them an architecture has, and what
# each means there, is found by giving them to its configuration class, which still reads them.
ROPE_WORDS = (
    "rope_theta",
    "rotary_emb_base",
    "global_rope_theta",
    "rope_local_base_freq",
    "local_rope_theta",
    "swa_rope_theta",
    "partial_rotary_factor",
    "rotary_pct",
)
# transformers 5 has common names for kinds of layers; in 4, these architectures accept only their own
LAYER_WORDS = {"granitemoehybrid": {"linear_attention": "mamba", "full_attention": "attention"}}
# keys that describe the folder and its weights, not the model
OURS = {"architectures", "dtype", "torch_dtype", "transformers_version", "quantization_config", "auto_map"}
PROBE = 0.4321


def write_config(folder: Path, skeleton: PreTrainedModel, source: Path | None, dtype: torch.dtype) -> None:
    """Write config.json: what transformers 5 saves, plus the keys of 4 that do not change how 5 reads it.

    Keys of `source`, the folder that the model came from, are kept on the same condition.
    """
    config = deepcopy(skeleton.config)
    config.architectures = [type(skeleton).__name__]
    config.dtype = dtype
    config.save_pretrained(folder)
    values = plain_floats(read_json(folder / CONFIG))
    given = read_json(source / CONFIG) if source is not None and (source / CONFIG).is_file() else {}
    if source is not None and given.get("model_type") != config.model_type:
        given = given.get("text_config") or {}  # the run trains the text model of a multimodal folder
    write_json(folder / CONFIG, with_older_words(config, values, given))


def with_older_words(config: PretrainedConfig, values: Values, given: Mapping[str, Any]) -> Values:
    """Return the values plus those keys of transformers 4, and of the source, that change nothing in 5."""
    kept = {key: value for key, value in given.items() if key not in OURS and not key.startswith("_")}
    words = {**older_words(config), **kept, **older_names(config, values)}
    for key in config.sub_configs:
        sub_config, sub_given = getattr(config, key, None), given.get(key)
        if isinstance(sub_config, PretrainedConfig) and isinstance(values.get(key), dict):
            sub_given = sub_given if isinstance(sub_given, dict) else {}
            words[key] = with_older_words(sub_config, values[key], sub_given)
    words["torch_dtype"] = values.get("dtype")
    words = {key: value for key, value in words.items() if value is not None or key == "rope_scaling"}
    if is_read_as(config, {**values, **words}):
        return {**values, **words}
    kept = dict(values)
    for key, value in words.items():
        if is_read_as(config, {**kept, key: value}):
            kept[key] = value
        elif key not in given:
            log.warning("config.json: %s is left out, as transformers 5 would misread it; 4 may miss it", key)
    return kept


def older_words(config: PretrainedConfig) -> Values:
    """Return the keys of transformers 4 for a model's rotary positions."""
    rope = getattr(config, "rope_parameters", None)
    if not rope:
        return {}
    words: Values = {}
    for word in ROPE_WORDS:
        found = [at(rope, place) for place in places_of(config, word, PROBE, PROBE)]
        if found and found == found[:1] * len(found):
            words[word] = found[0]
    by_layer = any(isinstance(value, dict) for value in rope.values())
    scaling = {"rope_type": "linear", "factor": PROBE}
    scaled = [place[:-1] for place in places_of(config, "rope_scaling", scaling, PROBE)] if by_layer else [()]
    if scaled:
        words["rope_scaling"] = older_scaling(config, at(rope, scaled[0]))
    return words


def places_of(config: PretrainedConfig, word: str, value: Any, seen: float) -> list[tuple[str, ...]]:
    """Return where in `rope_parameters` a configuration class puts the value of an older key.

    `value` is given under the key, and `seen` is the unusual number in it to look for.
    """
    try:
        made = type(config)(**{word: value})
    except Exception as error:  # noqa: BLE001  (the class of any architecture, given what it may not know)
        log.debug("%s does not take %s: %s", type(config).__name__, word, error)
        return []
    return list(places_in(getattr(made, "rope_parameters", None), seen))


def places_in(values: Any, seen: float) -> Iterator[tuple[str, ...]]:
    for key, value in (values or {}).items():
        if isinstance(value, dict):
            yield from ((key, *rest) for rest in places_in(value, seen))
        elif value == seen:
            yield (key,)


def at(values: Any, place: tuple[str, ...]) -> Any:
    for key in place:
        values = (values or {}).get(key)
    return values


def older_scaling(config: PretrainedConfig, rope: Any) -> Values | None:
    """Return `rope_scaling` as transformers 4 accepts it; that of phi3 must have no other keys."""
    if not rope or rope.get("rope_type", "default") == "default":
        return None
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor", "type")}
    if scaling["rope_type"] == "longrope" and hasattr(config, "original_max_position_embeddings"):
        scaling.pop("original_max_position_embeddings", None)
        return {"type": scaling.pop("rope_type"), **scaling}
    return scaling


def older_names(config: PretrainedConfig, values: Values) -> Values:
    """Return values under the class's other names for them, with layer kinds as transformers 4 calls them."""
    names = {old: values[new] for old, new in config.attribute_map.items() if new in values and old not in values}
    words = LAYER_WORDS.get(config.model_type)
    if words and values.get("layer_types"):
        names["layer_types"] = [words.get(kind, kind) for kind in values["layer_types"]]
        names.pop("layers_block_type", None)
    return names


def is_read_as(config: PretrainedConfig, values: Values) -> bool:
    """Return whether transformers 5 builds the same configuration from these values."""
    expected = comparable(config)
    try:
        found = comparable(type(config).from_dict(deepcopy(values)))
    except Exception as error:  # noqa: BLE001  (a class may refuse an older word in any way)
        log.debug("%s does not take %s: %s", type(config).__name__, values, error)
        return False
    return all(key in found and found[key] == value for key, value in expected.items())


def comparable(config: PretrainedConfig) -> Values:
    values: Values = json.loads(json.dumps(config.to_dict(), sort_keys=True, default=str))
    return {key: value for key, value in values.items() if key not in OURS and not key.startswith("_")}


def plain_floats(value: Any) -> Any:
    """Return values with infinities as Python's json writes them; transformers 4 cannot read the form that 5 uses."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: plain_floats(inner) for key, inner in value.items()}
    return [plain_floats(inner) for inner in value] if isinstance(value, list) else value


def write_generation_config(folder: Path, tokenizer: Any, source: Path | None) -> None:
    """Write the source's generation settings, with the stop tokens that this model was trained to end answers with.

    Maximum lengths are left out: they would override the limits of an evaluation harness.
    """
    given = read_json(source / GENERATION) if source is not None and (source / GENERATION).is_file() else {}
    dropped = {"max_length", "max_new_tokens", "transformers_version"}
    values = {key: value for key, value in given.items() if key not in dropped and not key.startswith("_")}
    before = given.get("eos_token_id")
    stops = [*stop_token_ids(tokenizer), *(before if isinstance(before, list) else [before])]
    stops = list(dict.fromkeys(stop for stop in stops if stop is not None))
    ours = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": (stops[0] if len(stops) == 1 else stops) if stops else None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    values |= {key: value for key, value in ours.items() if value is not None}
    write_json(folder / GENERATION, {**values, "transformers_version": __version__})


def read_json(path: Path) -> Values:
    values: Values = json.loads(path.read_text(encoding="utf-8"))
    return values
