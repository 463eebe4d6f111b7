"""Which keys a model's configuration may have: those of its class, and those that the model's code reads."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Iterable

from transformers import PretrainedConfig, PreTrainedModel

READ = re.compile(r"""config\.([A-Za-z]\w*)\b(?!\s*=[^=])|getattr\(\s*[\w.]*config,\s*["'](\w+)["']""")
OLDER_ROPE_KEYS = {"rope_theta", "rope_scaling", "partial_rotary_factor"}  # from transformers 4; 5 still accepts them


def keys_in_code(model_class: type[PreTrainedModel]) -> frozenset[str]:
    """Return the configuration keys that the source file of a model class reads."""
    source = inspect.getsource(sys.modules[model_class.__module__])
    return frozenset(one or other for one, other in READ.findall(source))


def known_keys(default: PretrainedConfig, model_class: type[PreTrainedModel]) -> set[str]:
    """Return every configuration key that has an effect in an architecture; `default` is its default configuration.

    A configuration class of transformers accepts any key, and does not declare all that count: only the model's code
    reads `head_dim` of a Qwen3-MoE, which every such model on the Hub sets.
    """
    own = {*default.to_dict(), *inspect.signature(type(default)).parameters, *default.attribute_map}
    read = {key for key in keys_in_code(model_class) if not callable(getattr(default, key, None))}
    rope = OLDER_ROPE_KEYS if hasattr(default, "rope_parameters") else set()
    return own | read | rope


def unknown_keys_text(given: Iterable[str], known: set[str]) -> str:
    """Return the unknown keys, each with the nearest known one, as text; empty if there are none."""
    unknown = sorted(set(given) - known)
    near = {key: difflib.get_close_matches(key, known, n=1) for key in unknown}
    return ", ".join(f"{key} (did you mean {near[key][0]}?)" if near[key] else key for key in unknown)
