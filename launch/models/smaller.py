"""Other files made from a run's export: int8 and int4 weights, with the held-out loss before and after, and GGUF."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import whole_folder
from cluster.paths import RunPaths
from cluster.progress import Waiting, amount_of
from cluster.wording import count_of
from data_prep.shards import read_manifest
from launch.config import RunConfig
from launch.saved_config import origin_of
from launch.wording import say

log = logging.getLogger(__name__)

BOUND = 0.05  # nats per token, 5 % of the perplexity: what rounding may add before it is worth a warning
KINDS_OF_INTEGERS = ("int8", "int4")
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")


def write_quantized(run: RunConfig, kind: str) -> Path:
    """Write the export with integer weights, measure what it lost, and say so; return its folder."""
    from training.export.export_record import verified_record, write_derived_record
    from training.export.quantize import quantize, require_library

    require_library()
    with Waiting("verifying the export") as waiting:
        source = verified_record(run.paths.export, run.paths.checkpoints)
        waiting.turn_to(f"writing the {kind} export and loading it again")
        output = run.paths.derived(kind)
        with whole_folder(output) as folder:
            made = quantize(run.paths.export, folder, kind)
            waiting.stop()
            made["loss"] = losses(run, folder, kind)
            record = write_derived_record(folder, source, made)
    say("\n".join(summary(made, source.weight_bytes, record.weight_bytes)))
    warn_of_loss(made, kind)
    return output


def write_gguf_folder(run: RunConfig, kind: str | None, named: Path | None) -> Path:
    """Write the export as a GGUF file in a folder of its own; return the file."""
    from training.export.export_record import verified_record, write_derived_record
    from training.export.gguf_file import find_converter, own_type, require_gguf, write_gguf

    converter = find_converter(named)
    require_gguf()
    with Waiting("verifying the export") as waiting:
        source = verified_record(run.paths.export, run.paths.checkpoints)
        kind = kind or own_type(run.paths.export)
        waiting.turn_to("running llama.cpp's converter and comparing its file with the export")
        output, name = run.paths.derived(f"gguf-{kind}"), f"{run.name}-{kind}.gguf"
        with whole_folder(output) as folder:
            made = write_gguf(run.paths.export, folder / name, kind, converter)
            record = write_derived_record(folder, source, made)
    say(
        f"step {record.step}, {in_bytes(record.weight_bytes)}: {made['tensors']} tensors, {made['tensors_compared']} of"
        f" them compared with the export; {made['tokens']:,} tokens and the chat template are the export's"
    )
    return output / name


def losses(run: RunConfig, folder: Path, kind: str) -> dict[str, Any] | None:
    """Return the held-out loss of the export and of its quantized form; None if the run has no held-out rows."""
    from data_prep.shards import ShardReader
    from training.evaluate.held_out_loss import held_out_loss

    manifest = read_manifest(run.shards)
    if manifest.rows("validation") == 0:
        return None
    origin, reader = origin_of(run), ShardReader(run.shards, manifest, "validation")
    rows = range(min(len(reader), run.evaluate.rows or len(reader)))
    before = held_out_loss(origin, run.paths.export, reader, rows, "the export")
    after = held_out_loss(origin, folder, reader, rows, f"the {kind} export")
    return {"rows": len(rows), "before": finite(before), "after": finite(after)}


def finite(loss: float) -> float | None:
    """Return a loss, None if it is not finite, which JSON cannot say."""
    return loss if math.isfinite(loss) else None


def summary(made: dict[str, Any], before: int, after: int) -> list[str]:
    """Return the table of sizes and losses, and what was left as it was."""
    from training.evaluate.tables import aligned

    rows: list[tuple[str, ...]] = [
        ("", "export", made["kind"], ""),
        ("weights on disk", in_bytes(before), in_bytes(after), ""),
    ]
    if made["loss"] is not None:
        loss = [made["loss"]["before"], made["loss"]["after"]]
        rows.append(("held-out loss, nats per token", *(text(value, "{:.4f}") for value in loss), ""))
        perplexities = [None if value is None else math.exp(min(value, 700.0)) for value in loss]
        rows.append(("perplexity", *(text(value, "{:,.2f}") for value in perplexities), ""))
    group = f"one scale for {made['group_size']} inputs" if made["group_size"] else "one scale a row"
    layers = f"{count_of(len(made['layers']), 'layer')} {'has' if len(made['layers']) == 1 else 'have'}"
    lines = [
        *aligned(rows),
        f"{layers} {made['bits']}-bit weights, {made['quantized_share']:.0%} of all, {group}",
    ]
    for why, names in made["kept"].items():
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        lines.append(f"as exported: {len(names)} matrices ({shown}): {why}")
    return lines


def in_bytes(value: int) -> str:
    return amount_of(value, "bytes")


def text(value: float | None, form: str) -> str:
    return "not finite" if value is None else form.format(value)


def warn_of_loss(made: dict[str, Any], kind: str) -> None:
    """Warn if the quantized model is much worse, or if that is not known."""
    loss = made["loss"]
    if loss is None:
        log.warning("the run has no held-out rows, so what the rounding cost is not known; try the model before use")
    elif loss["after"] is None:
        log.warning("the %s model has no finite loss: do not use it", kind)
    elif loss["before"] is not None and loss["after"] > loss["before"] + BOUND:
        log.warning(
            "the %s model is clearly worse: its held-out loss is %.3f above the export's, more than %.2f; %s",
            kind,
            loss["after"] - loss["before"],
            BOUND,
            "use int8" if kind == "int4" else "use the export",
        )


def tell_outdated(paths: RunPaths) -> None:
    """Say which folders were made from an earlier export than the run's."""
    from training.export.export_record import RECORD, read_record

    now = read_record(paths.export).checkpoint
    for path in sorted(paths.root.glob(f"export-*/{RECORD}")):
        record = read_record(path.parent)
        if record.checkpoint != now:
            log.warning("%s is of step %d, an earlier export; write it again, or remove it", path.parent, record.step)
