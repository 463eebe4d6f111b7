"""transformers' own conversions between the tensors of files and those of a model: names, fusions, what is ignored.

from_pretrained and save_pretrained apply them to whole models. Here the same objects are applied tensor by tensor, so
that a rank reads only its own spans and an export holds one tensor in memory. This relies on more of transformers than
its public interface; tests/models checks all of it against each new version:

    conversion_mapping.get_model_conversion_mapping     renamings and converters of a model and its sub-models
    core_model_loading.rename_source_key                which tensor a stored one becomes, and by which converter
    core_model_loading.dot_natural_key                  the order in which a converter collects tensors: 2 before 10
    core_model_loading.WeightConverter                  add_tensor, convert, operations, reverse_transform
    PreTrainedModel._adjust_missing_and_unexpected_keys which stored tensors may be ignored
    PreTrainedModel._get_dtype_plan                     which tensors stay in fp32 in a model of lower precision
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    MergeModulelist,
    SplitModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)


@dataclass(frozen=True)
class Conversion:
    """A converter and the names of its inputs, by pattern and in order; `key` is the name of its first output."""

    converter: WeightConverter
    key: str
    inputs: Mapping[str, Sequence[str]]

    def run(self, model: PreTrainedModel, tensors: Mapping[str, Sequence[torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Return the outputs by name; `tensors` are the inputs by pattern."""
        converter = deepcopy(self.converter)  # a converter accumulates the tensors it is given
        for pattern, several in tensors.items():
            for tensor in several:
                converter.add_tensor(self.key, self.key, pattern, tensor)
        made = converter.convert(self.key, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    @property
    def is_by_expert(self) -> bool:
        """Whether each input, or each output, belongs to one index of the fused tensor's first dimension.

        Then a range of experts can be converted without the rest: they are stacked first, or split last, and no other
        operation touches the first dimension.
        """
        first, *others = self.converter.operations
        if not isinstance(first, MergeModulelist):
            *others, first = self.converter.operations
        if not isinstance(first, MergeModulelist | SplitModulelist) or first.dim != 0:
            return False
        return all(keeps_first_dimension(operation) for operation in others)


def keeps_first_dimension(operation: object) -> bool:
    """Return whether an operation acts on each index of the first dimension alone."""
    if isinstance(operation, Chunk | Concatenate):
        return operation.dim > 0 and getattr(operation, "num_shards_attribute", None) is None
    if isinstance(operation, Transpose):
        return min(operation.dim0, operation.dim1) > 0 and not getattr(operation, "check_dims", False)
    return False


@dataclass(frozen=True)
class Incoming:
    """The source of each tensor of a model: the name of a stored tensor, or a conversion.

    `unplaced` maps the stored names that the model has no tensor for to the names that transformers gives them.
    """

    sources: Mapping[str, str | Conversion]
    unplaced: Mapping[str, str]


def incoming(model: PreTrainedModel, stored: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> Incoming:
    """Assign stored tensors to the tensors of a model as from_pretrained does; `shapes` are the stored shapes."""
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    places = model.state_dict()
    renamed: dict[str, str] = {}
    fused: dict[str, dict[str, list[str]]] = {}
    unplaced: dict[str, str] = {}
    for name in sorted(stored, key=dot_natural_key):
        key, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, places)
        if key not in places and name in places:  # named as in the model: the renaming was for another layout
            key, pattern = rename_source_key(name, [], [], model.base_model_prefix, places)
        if key not in places or (pattern is None and key in renamed):
            unplaced[name] = key
        elif pattern is None:
            renamed[key] = name
        else:
            fused.setdefault(key, {}).setdefault(pattern, []).append(name)
    sources: dict[str, str | Conversion] = dict(renamed)
    for key, inputs in fused.items():
        conversion = Conversion(by_pattern[next(iter(inputs))], key, inputs)
        sources |= dict.fromkeys(output_names(model, conversion, shapes), conversion)
    return Incoming(sources=sources, unplaced=unplaced)


def output_names(
    model: PreTrainedModel, conversion: Conversion, shapes: Mapping[str, tuple[int, ...]]
) -> Collection[str]:
    """Return the names of a conversion's outputs, running it on the meta device if they are not fixed."""
    targets = conversion.converter.target_patterns
    if len(targets) == 1 and "*" not in targets[0]:
        return [conversion.key]
    outlines = {
        pattern: [torch.empty(shapes[name], device="meta") for name in names]
        for pattern, names in conversion.inputs.items()
    }
    return conversion.run(model, outlines).keys()


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A tensor of an export: a tensor of the model, unchanged, or the output of a conversion.

    With `expert`, the conversion runs on this index of its inputs' first dimension alone, and `output` is the name of
    the result in that run.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    source: str | Conversion
    output: str = ""
    expert: int | None = None


def outgoing(model: PreTrainedModel, dtype: torch.dtype, stored: Collection[str] = ()) -> dict[str, Outgoing]:
    """Return the tensors that save_pretrained would write for a model, by name and in order.

    `stored` are the names in the files that the model was loaded from: a prefix that they had is restored.
    """
    transforms = [transform.reverse_transform() for transform in reversed(saved_conversions(model, stored))]
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    tensors = saved_tensors(model)
    made: dict[str, Outgoing] = {}
    fused: dict[str, dict[str, list[str]]] = {}
    for name in sorted(tensors, key=dot_natural_key):
        key, pattern = rename_source_key(name, [], converters)
        if pattern is None:
            made[name] = unchanged(model, name, tensors[name], dtype)
        else:
            fused.setdefault(key, {}).setdefault(pattern, []).append(name)
    for key, inputs in fused.items():
        made |= outputs(model, Conversion(by_pattern[next(iter(inputs))], key, inputs), tensors, dtype)
    return {rename_source_key(name, renamings, [])[0]: tensor for name, tensor in made.items()}


def saved_conversions(model: PreTrainedModel, stored: Collection[str]) -> list[Any]:
    """Return the conversions that saving reverts: all, except changes of a prefix that the stored names did not have.

    The prefix of a sub-model is always restored: other versions and programs know the tensors by it.
    """
    transforms = get_model_conversion_mapping(model, add_legacy=False)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    for name in stored:
        rename_source_key(name, renamings, [])  # for its side effect: a renaming records that it was used
    return [t for t in transforms if type(t).__name__ != "PrefixChange" or t.was_used() or t.scope_prefix]


def saved_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the tensors of a model that its files store: each tied tensor once, and persistent buffers only."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    ignored = model._keys_to_ignore_on_save or ()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied and name not in ignored}


def outputs(
    model: PreTrainedModel, conversion: Conversion, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, Outgoing]:
    """Return the outputs of a conversion, computed on the meta device; those of experts are split by expert."""
    names = [name for several in conversion.inputs.values() for name in several]
    kept = torch.float32 if any(stays_fp32(model, name, dtype) for name in names) else dtype

    def run(experts: slice) -> dict[str, torch.Tensor]:
        outlines = {
            pattern: [tensors[name][experts] for name in several] for pattern, several in conversion.inputs.items()
        }
        return conversion.run(model, outlines)

    made = run(slice(None))
    if not conversion.is_by_expert:
        return {
            name: Outgoing(shape=tuple(tensor.shape), dtype=kept, source=conversion, output=name)
            for name, tensor in made.items()
        }
    # the outputs are ordered by kind: the first kind of all experts, then the second
    first = run(slice(0, 1))
    order, experts = list(made), len(made) // len(first)
    if order[::experts] != list(first):
        raise RuntimeError(f"{conversion.key}: this transformers orders experts differently: {order[:3]} ...")
    return {
        order[place * experts + expert]: Outgoing(
            shape=tuple(tensor.shape), dtype=kept, source=conversion, output=output, expert=expert
        )
        for expert, (place, (output, tensor)) in product(range(experts), enumerate(first.items()))
    }


def unchanged(model: PreTrainedModel, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> Outgoing:
    """Return a tensor exported under its own name, in `dtype` unless it is integer or transformers keeps it in fp32."""
    if not tensor.is_floating_point():
        dtype = tensor.dtype
    elif stays_fp32(model, name, dtype):
        dtype = torch.float32
    return Outgoing(shape=tuple(tensor.shape), dtype=dtype, source=name)


def not_ignorable(model: PreTrainedModel, unplaced: Mapping[str, str]) -> list[str]:
    """Return the stored names that transformers would report as unexpected."""
    info = SimpleNamespace(missing_keys=set(), unexpected_keys=set(unplaced.values()))
    model._adjust_missing_and_unexpected_keys(info)
    return sorted(name for name, key in unplaced.items() if key in info.unexpected_keys)


def stays_fp32(model: PreTrainedModel, name: str, dtype: torch.dtype) -> bool:
    """Return whether transformers keeps a tensor in fp32 when it loads the model in `dtype`."""
    plan = model._get_dtype_plan(dtype)
    return any(re.search(pattern.replace("*", ".*"), name) for pattern in plan)
