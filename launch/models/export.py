"""`shardline export`: write the newest checkpoint as a Hugging Face folder."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from cluster.disk.lock_holder import Holder
from cluster.disk.run_lock import hold_run
from cluster.errors import EXIT_DONE, ConfigError
from cluster.progress import Waiting
from launch.arguments import add_run
from launch.config import RunConfig
from launch.models.smaller import GGUF_TYPES, KINDS_OF_INTEGERS, tell_outdated, write_gguf_folder, write_quantized
from launch.saved_config import load, origin_of
from launch.wording import named, say

OWN = "own"  # the type of GGUF that has the precision of the export


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)
    command.add_argument(
        "--quantize",
        choices=KINDS_OF_INTEGERS,
        help="from the export that is there, write export-int8 or export-int4: integer weights for transformers and"
        " vLLM, with the held-out loss before and after",
    )
    command.add_argument(
        "--gguf",
        nargs="?",
        const=OWN,
        choices=(*GGUF_TYPES, OWN),
        metavar="TYPE",
        help="from the export that is there, write a GGUF file for llama.cpp, Ollama and LM Studio: f32, f16, bf16 or"
        " q8_0 (default: the export's own precision)",
    )
    command.add_argument(
        "--converter",
        type=Path,
        metavar="PATH",
        help="llama.cpp's checkout, or its convert_hf_to_gguf.py (default: the script on PATH)",
    )


def run(options: argparse.Namespace) -> int:
    """Write the newest checkpoint as a Hugging Face folder, or a smaller form of the one that is there."""
    if options.converter is not None and options.gguf is None:
        raise ConfigError("--converter: is for --gguf; add that, or remove it")
    run = load(options)
    with hold_run(run.paths, Holder.here("shardline export")):
        if options.quantize:
            quantized = shlex.quote(str(write_quantized(run, options.quantize)))
            say(f"{quantized}\nnext: shardline chat {quantized}")
        if options.gguf:
            kind = None if options.gguf == OWN else options.gguf
            file = shlex.quote(str(write_gguf_folder(run, kind, options.converter)))
            say(f"{file}\nnext: llama-cli -m {file}")
        if options.quantize or options.gguf:
            return EXIT_DONE
        with Waiting("writing the export and verifying it"):  # before torch is imported, which takes seconds
            export_run(run)
        tell_outdated(run.paths)
    again = named(options, run.paths)
    say(f"{run.paths.export}\nnext: shardline evaluate {again}, or shardline chat {again}")
    return EXIT_DONE


def export_run(run: RunConfig) -> None:
    """Export a run that this process holds."""
    from training.export.export import Partial, export

    origin = origin_of(run)
    partial = Partial(origin=origin, seed=run.seed, lora=run.train.lora)
    export(origin, run.paths.checkpoints, run.export, run.paths.export, partial)
