"""A model as far as its costs go: names and shapes of its parameters, and the widths that activations depend on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from cluster.errors import ConfigError
from training.config import TrainConfig

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LISTED = ("llama", "mistral", "qwen2", "qwen3")
LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its name in transformers, its shape, and whether it is trained."""

    name: str
    shape: tuple[int, ...]
    is_trained: bool = True

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A model's parameters and widths. `embedding` and `head` are sizes; a tied head counts once, as the head.

    `feed_forward` is the width a token passes through, over all its experts. `used_of_experts` is the share of the
    experts that a token uses, 1 in a dense model. `tables` names the parameters with a row for each token of the
    vocabulary: embeddings and the head.
    """

    model_type: str
    parameters: tuple[Parameter, ...]
    layers: int
    width: int
    attention_width: int
    key_width: int
    feed_forward: int
    vocab: int
    positions: int | None
    used_of_experts: float = 1.0
    tables: frozenset[str] = frozenset({EMBEDDING, HEAD})

    @cached_property
    def total(self) -> int:
        return sum(parameter.size for parameter in self.parameters)

    @cached_property
    def trained(self) -> int:
        return sum(parameter.size for parameter in self.parameters if parameter.is_trained)

    @cached_property
    def used(self) -> float:
        """Parameters in a token's products outside of embedding and head; of experts, those that it is sent to."""
        return sum(self.in_products(parameter) for parameter in self.parameters)

    @cached_property
    def used_trained(self) -> float:
        return sum(self.in_products(parameter) for parameter in self.parameters if parameter.is_trained)

    def in_products(self, parameter: Parameter) -> float:
        if parameter.name in self.tables:
            return 0.0
        return parameter.size * (self.used_of_experts if ".experts." in parameter.name else 1.0)

    @cached_property
    def head(self) -> int:
        return self.vocab * self.width

    @cached_property
    def head_trained(self) -> bool:
        """Whether the head's matrix is trained: the last of the tables, or the embedding that it is tied to."""
        rows = [parameter for parameter in self.parameters if parameter.name in self.tables]
        return bool(rows) and rows[-1].is_trained

    @cached_property
    def largest_trained(self) -> int:
        return max((parameter.size for parameter in self.parameters if parameter.is_trained), default=0)

    @cached_property
    def largest_gather(self) -> int:
        """Parameters of the largest layer, or of the embedding: what ZeRO-3 gathers at a time."""
        of: dict[str, int] = {}
        for parameter in self.parameters:
            found = LAYER.search(parameter.name)
            key = parameter.name[: found.end()] if found else parameter.name
            of[key] = of.get(key, 0) + parameter.size
        return max(of.values())


def as_trained(shape: ModelShape, train: TrainConfig) -> ModelShape:
    """Return a shape made by `shape_of_config` with LoRA adapters and frozen parameters as `train` asks for them.

    Raises ConfigError if it names parameters that the model does not have.
    """
    if train.lora is not None:
        frozen = [replace(parameter, is_trained=False) for parameter in shape.parameters]
        return replace(shape, parameters=(*frozen, *adapters(shape, train)))
    for pattern in train.freeze:
        if not any(fnmatchcase(parameter.name, pattern) for parameter in shape.parameters):
            raise ConfigError(f"train.freeze: '{pattern}' matches no parameter of the model")
    kept = [
        replace(p, is_trained=not any(fnmatchcase(p.name, pattern) for pattern in train.freeze))
        for p in shape.parameters
    ]
    return replace(shape, parameters=tuple(kept))


def adapters(shape: ModelShape, train: TrainConfig) -> list[Parameter]:
    """Return the two matrices that LoRA adds to each of its linear layers, given [outputs, inputs] weights."""
    assert train.lora is not None
    rank, targets = train.lora.rank, train.lora.target_modules
    linear = [p for p in shape.parameters if len(p.shape) == 2 and p.name not in shape.tables]
    if targets:
        linear = [p for p in linear if p.name.split(".")[-2] in targets or is_named(p.name, targets)]
    if not linear:
        raise ConfigError(f"train.lora.target_modules: {', '.join(targets or [])} names no linear layer of the model")
    down = [Parameter(p.name.removesuffix("weight") + "lora_A.default.weight", (rank, p.shape[1])) for p in linear]
    up = [Parameter(p.name.removesuffix("weight") + "lora_B.default.weight", (p.shape[0], rank)) for p in linear]
    return [*down, *up]


def is_named(name: str, targets: list[str]) -> bool:
    module = name.removesuffix(".weight")
    return any(module == target or module.endswith(f".{target}") for target in targets)


def shape_of_config(config: Mapping[str, Any]) -> ModelShape | None:
    """Return the shape that a config.json describes; None for an architecture whose parameters are not listed here.

    Known are Llama's layers as Llama, Mistral, Qwen 2 and Qwen 3 have them. tests/training/costs holds the list against
    transformers' own models.
    """
    if config.get("model_type") not in LISTED:
        return None
    widths = widths_of(config)
    tied = bool(config.get("tie_word_embeddings", False))
    embedding = Parameter(EMBEDDING, (widths["vocab"], widths["width"]))
    head = [] if tied else [Parameter(HEAD, embedding.shape)]
    layers = [parameter for number in range(widths["layers"]) for parameter in layer_of(config, widths, number)]
    norm = Parameter("model.norm.weight", (widths["width"],))
    return ModelShape(
        model_type=str(config["model_type"]),
        parameters=(embedding, *layers, norm, *head),
        positions=config.get("max_position_embeddings"),
        **widths,
    )


def widths_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the widths by the names of ModelShape's fields. Raises ConfigError for a config.json that lacks one."""
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    missing = [key for key in keys if not isinstance(config.get(key), int)]
    if missing:
        raise ConfigError(f"config.json of a {config.get('model_type')}: has no {', '.join(missing)}")
    width, layers, heads, feed_forward, vocab = (int(config[key]) for key in keys)
    per_head = config.get("head_dim") or width // heads
    return {
        "layers": layers,
        "width": width,
        "attention_width": heads * per_head,
        "key_width": (config.get("num_key_value_heads") or heads) * per_head,
        "feed_forward": feed_forward,
        "vocab": vocab,
    }


def layer_of(config: Mapping[str, Any], widths: Mapping[str, int], number: int) -> Iterator[Parameter]:
    """Yield the parameters of one decoder layer."""
    kind, name = config["model_type"], f"model.layers.{number}."
    width, heads, keys, inner = (widths[key] for key in ("width", "attention_width", "key_width", "feed_forward"))
    biased = kind == "qwen2" or (kind in ("llama", "qwen3") and bool(config.get("attention_bias")))
    for matrix, outputs in (("q_proj", heads), ("k_proj", keys), ("v_proj", keys)):
        yield Parameter(f"{name}self_attn.{matrix}.weight", (outputs, width))
        if biased:
            yield Parameter(f"{name}self_attn.{matrix}.bias", (outputs,))
    yield Parameter(f"{name}self_attn.o_proj.weight", (width, heads))
    if biased and kind != "qwen2":
        yield Parameter(f"{name}self_attn.o_proj.bias", (width,))
    if kind == "qwen3":
        per_head = config.get("head_dim") or width // int(config["num_attention_heads"])
        yield Parameter(f"{name}self_attn.q_norm.weight", (per_head,))
        yield Parameter(f"{name}self_attn.k_norm.weight", (per_head,))
    for matrix, outputs, inputs in (
        ("gate_proj", inner, width),
        ("up_proj", inner, width),
        ("down_proj", width, inner),
    ):
        yield Parameter(f"{name}mlp.{matrix}.weight", (outputs, inputs))
        if kind == "llama" and config.get("mlp_bias"):
            yield Parameter(f"{name}mlp.{matrix}.bias", (outputs,))
    yield Parameter(f"{name}input_layernorm.weight", (width,))
    yield Parameter(f"{name}post_attention_layernorm.weight", (width,))


def shape_of_skeleton(skeleton: Any, config: Any) -> ModelShape:
    """Return the shape of a model on the meta device with its transformers configuration, whatever the architecture.

    The widths of architectures that name them otherwise are taken from the shapes of a layer.
    """
    text = config.get_text_config()
    parameters = tuple(Parameter(n, tuple(p.shape), p.requires_grad) for n, p in skeleton.named_parameters())
    width, layers = int(text.hidden_size), int(text.num_hidden_layers)
    heads = int(getattr(text, "num_attention_heads", None) or 1)
    per_head = int(getattr(text, "head_dim", None) or width // heads)
    experts = first_of(text, "num_local_experts", "num_experts", "n_routed_experts") or 1
    chosen = first_of(text, "num_experts_per_tok", "num_experts_per_token") or 1
    inner = first_of(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * width
    if experts > 1:
        inner = chosen * (first_of(text, "moe_intermediate_size") or inner)
    head = skeleton.get_output_embeddings()
    tables = {
        id(module.weight)
        for module in skeleton.modules()
        if "Embedding" in type(module).__name__ and hasattr(module, "weight")
    }
    tables |= set() if head is None else {id(head.weight)}
    return ModelShape(
        model_type=str(text.model_type),
        tables=frozenset(name for name, parameter in skeleton.named_parameters() if id(parameter) in tables),
        parameters=parameters,
        layers=layers,
        width=width,
        attention_width=heads * per_head,
        key_width=(first_of(text, "num_key_value_heads") or heads) * per_head,
        feed_forward=inner,
        vocab=int(text.vocab_size),
        positions=first_of(text, "max_position_embeddings"),
        used_of_experts=chosen / experts if experts > 1 else 1.0,
    )


def first_of(config: Any, *names: str) -> int | None:
    """Return the first of these keys that a configuration has a number for."""
    found = (getattr(config, name, None) for name in names)
    return next((int(value) for value in found if isinstance(value, int) and value), None)
