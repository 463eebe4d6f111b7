"""Write an export again with integer weights: int8 or int4 in the layout of compressed-tensors, read back and checked.

transformers and vLLM load the folder as it stands. Weights of linear layers are rounded to the nearest integer multiple
of a scale, one scale a row (int8) or a group of 32 inputs (int4); nothing is calibrated on data, and activations keep
their precision. The files are rewritten one by one, so the names and all other tensors are those of the export.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from cluster.disk.atomic_files import write_json
from cluster.errors import CheckpointError, ClusterError, ConfigError
from cluster.model_files import ADAPTER_CONFIG, CONFIG, WEIGHTS_INDEX, read_settings, weight_files
from training.export.export_record import read_record
from training.export.quantized_layers import (
    SCHEMES,
    WEIGHT,
    Choice,
    Scheme,
    check_stored_as_loaded,
    choose_layers,
    stored_shapes,
    told,
)
from training.models.source import skeleton_of

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of a step: rounding of the division in fp32

Tensors = dict[str, torch.Tensor]


def quantize(export: Path, folder: Path, name: str) -> dict[str, Any]:
    """Fill `folder` with an export in 'int8' or 'int4', and check it; return what the record says of it.

    Needs the memory of one file of weights, and of two models to check it. Raises ConfigError if nothing can be
    quantized, CheckpointError if the result does not load as it was meant.
    """
    require_library()
    if (export / ADAPTER_CONFIG).is_file():
        raise ConfigError(
            "--quantize: the export holds an adapter alone; set export.lora: merged and run `shardline export RUN.yaml`"
        )
    scheme = SCHEMES[name]
    shapes = dict(stored_shapes(export))
    model = skeleton_of(AutoConfig.from_pretrained(export))
    choice = choose_layers(model, shapes, scheme)
    if choice.layers:
        check_stored_as_loaded(model, shapes, name)
    if not choice.layers:
        raise ConfigError(f"--quantize {name}: {type(model).__name__} has no layer that can be quantized{told(choice)}")
    steps = write_files(export, folder, scheme, set(choice.layers))
    write_config(export, folder, model, scheme, choice)
    check_loads(export, folder, steps)
    quantized = sum(shapes[layer + WEIGHT][0] * shapes[layer + WEIGHT][1] for layer in choice.layers)
    return {
        "kind": name,
        "bits": scheme.bits,
        "group_size": scheme.group,
        "layers": choice.layers,
        "kept": choice.kept,
        "quantized_share": quantized / sum(parameter.numel() for parameter in model.parameters()),
        "format": "compressed-tensors, pack-quantized",
    }


def require_library() -> None:
    """Raise ClusterError if compressed-tensors is not installed."""
    if importlib.util.find_spec("compressed_tensors") is None:
        raise ClusterError("--quantize: compressed-tensors is not installed: pip install -e '.[quantize]'")


def copy_others(export: Path, folder: Path) -> None:
    """Copy the exported files that hold no weights; notes and cards that somebody added stay where they are."""
    for name in sorted(read_record(export).files.keys() - {*weight_files(export), WEIGHTS_INDEX}):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(export / name, folder / name)


def write_files(export: Path, folder: Path, scheme: Scheme, layers: Collection[str]) -> Tensors:
    """Write the files of an export with these layers quantized; return half a quantization step for each layer.

    Raises CheckpointError unless, read back, every weight is within half a step of the exported one.
    """
    copy_others(export, folder)
    index: dict[str, str] = {}
    half_steps: Tensors = {}
    total = 0
    for file in weight_files(export):
        with safe_open(export / file, framework="pt") as stored:
            given = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        written = converted(given, scheme, layers)
        save_file(written, folder / file, metadata={"format": "pt"})
        shutil.copymode(export / file, folder / file)  # the library's are for their owner alone
        half_steps |= check_file(folder / file, given, scheme, layers)
        index |= dict.fromkeys(written, file)
        total += sum(tensor.nbytes for tensor in written.values())
    if (export / WEIGHTS_INDEX).is_file():
        write_json(folder / WEIGHTS_INDEX, {"metadata": {"total_size": total}, "weight_map": index})
    return half_steps


def converted(given: Tensors, scheme: Scheme, layers: Collection[str]) -> Tensors:
    """Return the tensors of a file, with these layers' weights packed."""
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor

    settings = library_scheme(scheme)
    written: Tensors = {}
    for name, tensor in given.items():
        layer = name.removesuffix(WEIGHT)
        if layer not in layers:
            written[name] = tensor
            continue
        scale = scales(tensor, scheme)
        # in fp32: the library divides in the weights' precision, and bf16 cannot tell 100 from 100.4
        exact = {"weight": tensor.float(), "weight_scale": scale.float()}
        packed = PackedQuantizationCompressor.compress(exact, settings)
        packed["weight_scale"] = scale
        written |= {f"{layer}.{key}": value.contiguous() for key, value in packed.items()}
    return written


def scales(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return the scales [rows, groups] of a weight, in its precision, rounded up so that no weight is clipped."""
    groups = weight.float().reshape(weight.shape[0], -1, scheme.group or weight.shape[1])
    exact = groups.abs().amax(dim=-1) / scheme.top
    exact = exact.clamp_min(torch.finfo(weight.dtype).tiny)  # a group of zeros
    rounded = exact.to(weight.dtype)
    upward = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    return torch.where(rounded.float() < exact, upward, rounded)


def library_scheme(scheme: Scheme) -> Any:
    """Return a scheme as compressed-tensors describes it."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    strategy = "channel" if scheme.group is None else "group"
    args = QuantizationArgs(
        num_bits=scheme.bits, type="int", symmetric=True, strategy=strategy, group_size=scheme.group
    )
    return QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")


def check_file(path: Path, given: Tensors, scheme: Scheme, layers: Collection[str]) -> Tensors:
    """Compare a file with the export's tensors; return half a step for each quantized layer, shaped as its weight."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    half_steps: Tensors = {}
    with safe_open(path, framework="pt") as stored:
        for name, tensor in given.items():
            layer = name.removesuffix(WEIGHT)
            if layer not in layers:
                require(torch.equal(stored.get_tensor(name), tensor), path, name)
                continue
            whole = unpack_from_int32(stored.get_tensor(f"{layer}.weight_packed"), scheme.bits, tensor.shape)
            scale = stored.get_tensor(f"{layer}.weight_scale").float()
            each = scale.repeat_interleave(scheme.group or tensor.shape[1], dim=1)
            differences = (whole.float() * each - tensor.float()).abs()
            require(bool((differences <= each * (0.5 + TOLERANCE)).all()), path, name)
            half_steps[name] = scale * (0.5 + TOLERANCE)
    return half_steps


def require(is_same: bool, path: Path, name: str) -> None:
    if not is_same:
        raise CheckpointError(
            f"{path}: {name} does not read back within half a quantization step of the exported one; please report it"
        )


def write_config(export: Path, folder: Path, model: PreTrainedModel, scheme: Scheme, choice: Choice) -> None:
    """Write the export's config.json, which is kept as it is, with the description that loaders read."""
    from compressed_tensors import __version__
    from compressed_tensors.quantization import QuantizationConfig

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    described = QuantizationConfig(
        config_groups={"group_0": library_scheme(scheme)},
        ignore=[name for name in linear if name not in set(choice.layers)],
        quant_method="compressed-tensors",
        format="pack-quantized",
        quantization_status="compressed",
    )
    values = {
        **described.model_dump(mode="json"),
        "version": __version__,
        "sparsity_config": {},
        "transform_config": {},
    }
    write_json(folder / CONFIG, {**read_settings(export / CONFIG), "quantization_config": values})


def check_loads(export: Path, folder: Path, half_steps: Tensors) -> None:
    """Load both folders as a user would. Raises CheckpointError unless every tensor is where the rounding put it.

    What was not quantized must be the same bit for bit.
    """
    disable_progress_bar()
    with without_bars():
        model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
        wrong = {kind: names for kind, names in loading.items() if names}
        if wrong:
            raise CheckpointError(f"{folder}: transformers does not load it as written: {wrong}; please report it")
        with torch.inference_mode():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long))  # its first call unpacks the weights
    before = AutoModelForCausalLM.from_pretrained(export, dtype="auto")
    found = dict(model.named_parameters())
    for name, parameter in before.named_parameters():
        loaded = found.get(name)
        if loaded is None or loaded.shape != parameter.shape or loaded.dtype != parameter.dtype:
            raise CheckpointError(f"{folder}: {name} is not in the model that transformers loads; please report it")
        half = half_steps.get(name)
        if half is None:
            require(torch.equal(loaded, parameter), folder, name)
            continue
        each = half.repeat_interleave(parameter.shape[1] // half.shape[1], dim=1)
        rounding = parameter.float().abs() * torch.finfo(parameter.dtype).eps
        require(bool(((loaded.float() - parameter.float()).abs() <= each + rounding).all()), folder, name)
    buffers = dict(model.named_buffers())
    for name, buffer in before.named_buffers():
        require(name in buffers and torch.equal(buffers[name], buffer), folder, name)


@contextmanager
def without_bars() -> Iterator[None]:
    """Leave out the progress bars of compressed-tensors, which has no setting for that; other lines are kept."""
    with redirect_stderr(io.StringIO()) as captured:
        try:
            yield
        finally:
            others = [line for line in captured.getvalue().splitlines() if line.strip() and "%|" not in line]
    for line in others:
        log.warning("%s", line)
