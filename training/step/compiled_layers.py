"""torch.compile of each decoder layer's forward, inside of activation checkpointing and of ZeRO-3's hooks.

Compiled is what these call, so hooks and checkpointing stay as they are. Attention by documents is called from compiled
code as it is: its segments are other ones in each step, and would be compiled again each time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from cluster.errors import ClusterError, ConfigError, TrainingError
from training.step import document_attention

KEY = "train.compile"


def compile_layers(layers: Collection[nn.Module], backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the forward of decoder layers in training, for inputs of one shape; evaluation stays as it is.

    Raises ConfigError for layers that are not transformers' own.
    """
    import torch._dynamo

    if not layers:
        raise ConfigError(f"{KEY}: layers: no layer of this model is gathered as a whole; set none")
    document_attention.leave_uncompiled()
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # else torch goes on without compiling, and says nothing
    for layer in layers:
        if not isinstance(layer, GradientCheckpointingLayer):
            raise ConfigError(f"{KEY}: layers: {type(layer).__name__} is no layer of the usual kind; set none")
        inner = type(layer).forward.__wrapped__  # without the checkpointing around it
        compiled = torch.compile(inner, dynamic=False, backend=backend)
        layer.forward = partial(forward, layer, layer.forward, compiled)


def forward(
    layer: Any, uncompiled: Callable[..., Any], compiled: Callable[..., Any], *inputs: Any, **settings: Any
) -> Any:
    """Call a layer as transformers' GradientCheckpointingLayer does, with its compiled forward."""
    if not (layer.training and torch.is_grad_enabled()):
        return uncompiled(*inputs, **settings)
    try:
        if layer.gradient_checkpointing:
            return layer._gradient_checkpointing_func(partial(compiled, layer, **settings), *inputs)
        return compiled(layer, *inputs, **settings)
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        told = str(error).splitlines()[0]
        raise TrainingError(f"{KEY}: layers: one is compiled again and again: {told}; set none") from error


def require_compiler() -> None:
    """Raise ClusterError where nothing can be compiled: inductor writes C++ for a CPU, Triton some C for a GPU."""
    on_gpu = torch.cuda.is_available()
    if not ((shutil.which("gcc") or shutil.which("clang")) if on_gpu else cpp_compiler()):
        raise ClusterError(
            f"{KEY}: layers: there is no C++ compiler on this machine; install one on every node (Debian: g++), or set"
            " none"
        )


def cpp_compiler() -> str | None:
    """Return the compiler that inductor would use; None without one."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return str(get_cpp_compiler())
    except InvalidCxxCompiler:
        return None
