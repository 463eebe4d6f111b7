"""Which keys a model's configuration may have: those of its class, and those that only the model's code reads."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Iterable

from transformers import PretrainedConfig, PreTrainedModel

READ = re.compile(r"""config\.([A-Za-z]\w*)\b(?!\s*=[^=])|getattr\(\s*[\w.]*config,\s*["'](\w+)["']""")
OLDER_ROPE_KEYS = {"rope_theta", "rope_scaling", "partial_rotary_factor"}  # of transformers 4; 5 still takes them


def keys_in_code(model_class: type[PreTrainedModel]) -> frozenset[str]:
    """Return the keys of a configuration that the file of a model's class reads."""
    source = inspect.getsource(sys.modules[model_class.__module__])
    return frozenset(one or other for one, other in READ.findall(source))


def known_keys(default: PretrainedConfig, model_class: type[PreTrainedModel]) -> set[str]:
    """Return every key that means something to an architecture, whose default configuration is `default`.

    A class of transformers keeps any key it is given, and its own are not all: `head_dim` of a Qwen3-MoE, which each
    model of that kind on the hub has, is read by the model's code alone.
    """
    own = {*default.to_dict(), *inspect.signature(type(default)).parameters, *default.attribute_map}
    read = {key for key in keys_in_code(model_class) if not callable(getattr(default, key, None))}
    rope = OLDER_ROPE_KEYS if hasattr(default, "rope_parameters") else set()
    return own | read | rope


def unknown_keys_text(given: Iterable[str], known: set[str]) -> str:
    """Return the keys that mean nothing, each with the nearest that does; empty if there are none."""
    unknown = sorted(set(given) - known)
    near = {key: difflib.get_close_matches(key, known, n=1) for key in unknown}
    return ", ".join(f"{key} (did you mean {near[key][0]}?)" if near[key] else key for key in unknown)
