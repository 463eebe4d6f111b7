"""transformers' own rules between the tensors of files and those of a model: names, fusions, what is left out.

from_pretrained and save_pretrained apply them to whole models. Here the same objects are asked tensor by tensor, so
that a rank reads its own part only and an export keeps one tensor in memory. What is used of transformers beyond its
public interface, and what tests/models holds a new version to:

    conversion_mapping.get_model_conversion_mapping     renamings and converters of a model and its sub-models
    core_model_loading.rename_source_key                where a stored tensor goes, and by which converter
    core_model_loading.dot_natural_key                  the order in which a converter collects tensors: experts 2, 10
    core_model_loading.WeightConverter                  add_tensor, convert, operations, reverse_transform
    PreTrainedModel._adjust_missing_and_unexpected_keys what of a file may be left over
    PreTrainedModel._get_dtype_plan                     what stays in fp32 in a model of less
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
    """One converter with what it takes: the names of its inputs by pattern, in order; `key` is its first output."""

    converter: WeightConverter
    key: str
    inputs: Mapping[str, Sequence[str]]

    def run(self, model: PreTrainedModel, tensors: Mapping[str, Sequence[torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Return the outputs by name; `tensors` are the inputs by pattern."""
        converter = deepcopy(self.converter)  # it keeps what it was given
        for pattern, several in tensors.items():
            for tensor in several:
                converter.add_tensor(self.key, self.key, pattern, tensor)
        made = converter.convert(self.key, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    @property
    def is_by_expert(self) -> bool:
        """Whether each input, or each output, is made of one index of a fused tensor's first dimension and no other.

        Then any range of experts can be converted without the rest: they are stacked first, or taken apart last, and
        whatever else is done leaves the first dimension alone.
        """
        first, *others = self.converter.operations
        if not isinstance(first, MergeModulelist):
            *others, first = self.converter.operations
        if not isinstance(first, MergeModulelist | SplitModulelist) or first.dim != 0:
            return False
        return all(leaves_first_dimension(operation) for operation in others)


def leaves_first_dimension(operation: object) -> bool:
    if isinstance(operation, Chunk | Concatenate):
        return operation.dim > 0 and getattr(operation, "num_shards_attribute", None) is None
    if isinstance(operation, Transpose):
        return min(operation.dim0, operation.dim1) > 0 and not getattr(operation, "check_dims", False)
    return False


@dataclass(frozen=True)
class Incoming:
    """Where the tensors of a model come from: a stored tensor as it is, or a conversion; and what has no place.

    `unplaced` holds the stored names that nothing takes, with the names that transformers would give them.
    """

    sources: Mapping[str, str | Conversion]
    unplaced: Mapping[str, str]


def incoming(model: PreTrainedModel, stored: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> Incoming:
    """Deal stored tensors to the tensors of a model as from_pretrained does; `shapes` are those of the stored."""
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
        if key not in places and name in places:  # it has its place already: the rule was for another layout
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
    """Return the names that a conversion makes, without its tensors."""
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
    """A tensor of exported files: a tensor of the model as it is, or an output of a conversion.

    With `expert`, that conversion is run on this index of its inputs' first dimension alone; `output` is then the
    name that its output gets there.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    source: str | Conversion
    output: str = ""
    expert: int | None = None


def outgoing(model: PreTrainedModel, dtype: torch.dtype, stored: Collection[str] = ()) -> dict[str, Outgoing]:
    """Return the tensors that save_pretrained would write of a model, by name, in order.

    `stored` are the names in the files that the model came from: a prefix that they had is put back.
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
            made[name] = as_it_is(model, name, tensors[name], dtype)
        else:
            fused.setdefault(key, {}).setdefault(pattern, []).append(name)
    for key, inputs in fused.items():
        made |= outputs(model, Conversion(by_pattern[next(iter(inputs))], key, inputs), tensors, dtype)
    return {rename_source_key(name, renamings, [])[0]: tensor for name, tensor in made.items()}


def saved_conversions(model: PreTrainedModel, stored: Collection[str]) -> list[Any]:
    """Return the conversions that saving reverts: all but changes of a prefix that the stored names do not have.

    The prefix of a sub-model always comes back: it is the name that other versions and programs know.
    """
    transforms = get_model_conversion_mapping(model, add_legacy=False)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    for name in stored:
        rename_source_key(name, renamings, [])  # a transform remembers that it was of use
    return [t for t in transforms if type(t).__name__ != "PrefixChange" or t.was_used() or t.scope_prefix]


def saved_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the tensors of a model that a file of it holds: no other names of the same, and no made buffers."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    ignored = model._keys_to_ignore_on_save or ()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied and name not in ignored}


def outputs(
    model: PreTrainedModel, conversion: Conversion, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, Outgoing]:
    """Return what a conversion makes, without memory for it; experts one after the other."""
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
    # all of the first output come first, then all of the second
    first = run(slice(0, 1))
    order, experts = list(made), len(made) // len(first)
    if order[::experts] != list(first):
        raise RuntimeError(f"{conversion.key}: transformers names experts in another order: {order[:3]} ...")
    return {
        order[place * experts + expert]: Outgoing(
            shape=tuple(tensor.shape), dtype=kept, source=conversion, output=output, expert=expert
        )
        for expert, (place, (output, tensor)) in product(range(experts), enumerate(first.items()))
    }


def as_it_is(model: PreTrainedModel, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> Outgoing:
    if not tensor.is_floating_point():
        dtype = tensor.dtype
    elif stays_fp32(model, name, dtype):
        dtype = torch.float32
    return Outgoing(shape=tuple(tensor.shape), dtype=dtype, source=name)


def not_ignorable(model: PreTrainedModel, unplaced: Mapping[str, str]) -> list[str]:
    """Return the stored names that transformers would report as having no place in the model."""
    info = SimpleNamespace(missing_keys=set(), unexpected_keys=set(unplaced.values()))
    model._adjust_missing_and_unexpected_keys(info)
    return sorted(name for name, key in unplaced.items() if key in info.unexpected_keys)


def stays_fp32(model: PreTrainedModel, name: str, dtype: torch.dtype) -> bool:
    """Return whether transformers keeps this tensor in fp32 when it loads the model in `dtype`."""
    plan = model._get_dtype_plan(dtype)
    return any(re.search(pattern.replace("*", ".*"), name) for pattern in plan)
