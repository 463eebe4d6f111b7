"""Choose which layers of an export get integer weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from cluster.errors import ConfigError
from cluster.model_files import weight_files

WEIGHT = ".weight"
ROUTERS = {"gate", "router", "shared_expert_gate"}  # one small matrix that decides for the whole layer

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How weights are rounded: `bits` for each, and a scale for each `group` of inputs; for a row if that is None."""

    bits: int
    group: int | None

    @property
    def top(self) -> int:
        """The largest integer; the smallest is its negative, so that zero is in the middle."""
        return 2 ** (self.bits - 1) - 1  # type: ignore[no-any-return]


SCHEMES = {"int8": Scheme(bits=8, group=None), "int4": Scheme(bits=4, group=32)}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The layers to quantize, and by reason the other matrices, which keep their precision."""

    layers: list[str]
    kept: dict[str, list[str]]


def stored_shapes(export: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every tensor in an export's files."""
    for file in weight_files(export):
        with safe_open(export / file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118  (not a mapping)
                yield name, tuple(stored.get_slice(name).get_shape())


def choose_layers(model: PreTrainedModel, shapes: Shapes, scheme: Scheme) -> Choice:
    """Return which layers of a model, on the meta device, are quantized."""
    modules = dict(model.named_modules())
    ends = {id(end) for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None}
    layers: list[str] = []
    kept: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        if len(shape) < 2:
            continue
        layer = name.removesuffix(WEIGHT)
        why = why_kept(modules.get(layer), layer, ends, scheme)
        if why is None and tuple(model.get_submodule(layer).get_parameter("weight").shape) == shape:
            layers.append(layer)
        else:
            kept.setdefault(why or "the files store it in another shape", []).append(name)
    return Choice(layers=layers, kept=kept)


def why_kept(module: nn.Module | None, layer: str, ends: Collection[int], scheme: Scheme) -> str | None:
    """Return why a matrix is not quantized, None if it is."""
    if module is not None and id(module) in ends:
        return "embeddings and output head"
    if module is None or type(module) is not nn.Linear:
        return "not a linear layer of its own (experts, convolutions)"
    if layer.rpartition(".")[2] in ROUTERS:
        return "routers of experts"
    if scheme.group is not None and module.in_features % scheme.group:
        return f"inputs are no multiple of {scheme.group}"
    return None


def check_stored_as_loaded(model: PreTrainedModel, shapes: Shapes, name: str) -> None:
    """Raise ConfigError if the files hold apart what the model has in one tensor, such as the experts of a layer.

    transformers merges them when it loads a folder, but drops them if some of its weights are integers.
    """
    apart = sorted(set(shapes) - model.state_dict().keys())
    if apart:
        raise ConfigError(
            f"--quantize {name}: transformers cannot load {type(model).__name__} beside integer weights: {len(apart)}"
            f" matrices, such as {apart[0]}, are merged on loading; run `shardline export RUN.yaml --gguf q8_0` instead"
        )


def told(choice: Choice) -> str:
    """Return the reasons in words, for the end of a message."""
    reasons = [f"{len(names)} matrices: {why}" for why, names in choice.kept.items()]
    return f" ({'; '.join(reasons)})" if reasons else ""
