"""The figures and facts at the top of a run's page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from cluster.config_loading import read_yaml
from cluster.paths import RunPaths
from cluster.wording import count_of
from training.reporting.page.goodput import goodput, wall_time
from training.reporting.page.hardware import Compute, hardware_text
from training.reporting.plots import Evaluation, smoothed
from training.reporting.run_state import RunState
from training.reporting.wording import duration, short

Record = Mapping[str, Any] | None
Figure = tuple[str, str, str]  # label, value, remark


def figures_of(state: RunState, evaluation: Evaluation, compute: Compute) -> list[Figure]:
    """Return the key figures of a run that has steps."""
    return [*loss_figures(state, evaluation), *run_figures(state), *mfu_figures(state, compute)]


def loss_figures(state: RunState, evaluation: Evaluation) -> list[Figure]:
    """Return the held-out loss of the base and tuned model, or the training loss without them."""
    if evaluation is None:
        first, last = state.lines[0]["loss"], smoothed([line["loss"] for line in state.lines])[-1]
        training = ("Training loss", f"{first:.3f} → {last:.3f}", "first step → running mean at the end")
        return [training, *validation_figures(state.validation)]
    base, tuned = evaluation["models"]["base"], evaluation["models"]["tuned"]
    change = f", {tuned['loss'] / base['loss'] - 1:+.0%}" if base["loss"] else ""
    perplexity = f"{short(base['perplexity'])} → {short(tuned['perplexity'])}"
    return [
        ("Held-out loss", f"{base['loss']:.3f} → {tuned['loss']:.3f}", f"base → tuned model{change}"),
        ("Perplexity", perplexity, "equally likely next tokens, in effect"),
    ]


def validation_figures(losses: dict[int, float]) -> list[Figure]:
    if not losses:
        return []
    newest = losses[max(losses)]
    numbers = {step: loss for step, loss in losses.items() if math.isfinite(loss)}
    best = min(numbers, key=lambda step: numbers[step]) if numbers else None
    lowest = f"; lowest: {numbers[best]:.3f} at step {best:,}" if best is not None else ""
    return [("Validation loss", f"{newest:.3f}", f"the newest{lowest}")]


def run_figures(state: RunState) -> list[Figure]:
    tokens = sum(line["trained_tokens"] for line in state.lines)
    speed = statistics.median(line["tokens_per_s"] for line in state.lines)
    shares = wall_time(state)
    elapsed = math.fsum(share.seconds for share in shares)
    return [
        ("Steps", f"{state.step:,}", f"of {state.total_steps or 0:,}; {state.step_s or 0:.3g} s a step"),
        ("Tokens trained", short(tokens), "each pass over the data counts"),
        ("Speed", f"{speed:,.0f} tokens/s", f"median, with masked tokens and padding{useful_text(state)}"),
        ("Wall time", duration(elapsed), f"goodput {goodput(shares):.0%}: in steps that were kept" if elapsed else ""),
        ("Restarts", str(state.restarts), "each from the newest checkpoint" if state.restarts else "a single attempt"),
    ]


def useful_text(state: RunState) -> str:
    useful = [line["useful_tokens_per_s"] for line in state.lines if "useful_tokens_per_s" in line]
    return f"; {statistics.median(useful):,.0f} without padding" if useful else ""


def mfu_figures(state: RunState, compute: Compute) -> list[Figure]:
    """Return the median MFU, or why there is none."""
    if measured := [line["mfu"] for line in state.lines if "mfu" in line]:
        return [("MFU", f"{statistics.median(measured):.1%}", "median, without padding; see below")]
    if compute.peak_flops is None:
        return [("MFU", "not known", compute.explained)]
    speed = statistics.median(line["tokens_per_s"] for line in state.lines)
    return [("MFU", f"{speed * compute.flops_per_token / compute.peak_flops:.1%}", "median; see below")]


def facts_of(paths: RunPaths, state: RunState, plan: Record, evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return what was trained, how, and on what."""
    train = config_of(paths).get("train") or {}
    found = [
        ("Model", model_name(paths, evaluation)),
        ("Parameters", parameters_text(plan)),
        ("Method", method_text(train, plan)),
        ("Batch", batch_text(plan)),
        ("Learning rate", rate_text(plan)),
        ("Hardware", hardware_text(state)),
    ]
    return [(name, text) for name, text in found if text]


def config_of(paths: RunPaths) -> dict[str, Any]:
    return read_yaml(paths.config) if paths.config.is_file() else {}


def model_name(paths: RunPaths, evaluation: Evaluation) -> str:
    model = config_of(paths).get("model") or {}
    if model.get("path") or model.get("new"):
        return str(model.get("path") or f"new {model['new'].get('model_type', 'llama')} model")
    return str(evaluation["models"]["base"]["path"]) if evaluation else ""


def parameters_text(plan: Record) -> str:
    if plan is None or "parameters" not in plan:
        return ""
    return f"{plan['parameters']:,}"


def method_text(train: Mapping[str, Any], plan: Record) -> str:
    """Return whether all weights, some, or adapters are trained."""
    precision = f" in {train['precision']}" if train.get("precision") else ""
    share = trained_share(plan)
    if lora := train.get("lora"):
        return f"LoRA, rank {lora.get('rank', 16)}, alpha {lora.get('alpha', 32):g}{share}{precision}"
    if frozen := train.get("freeze"):
        return f"full, with frozen parameters ({', '.join(map(str, frozen))}){share}{precision}"
    return f"full: every weight is trained{precision}" if plan else ""


def trained_share(plan: Record) -> str:
    if plan is None or not plan.get("parameters") or plan.get("trained_parameters") is None:
        return ""
    return (
        f": {plan['trained_parameters']:,} parameters trained ({plan['trained_parameters'] / plan['parameters']:.2%})"
    )


def batch_text(plan: Record) -> str:
    needed = {"global_batch_rows", "row_tokens", "world_size", "micro_batch_rows", "accumulation_steps"}
    if plan is None or not needed <= plan.keys():
        return ""
    rows, tokens = plan["global_batch_rows"], plan["global_batch_rows"] * plan["row_tokens"]
    split = f"{plan['world_size']} x {plan['micro_batch_rows']} x {plan['accumulation_steps']}"
    shape = f"{count_of(rows, 'row')} of {plan['row_tokens']:,} tokens = {tokens:,} tokens a step"
    places = plan["world_size"] * plan["micro_batch_rows"] * plan["accumulation_steps"]
    empty = f", {places - rows:,} of {places:,} places empty" if places > rows else ""
    return f"{shape} ({split}: ranks, rows, accumulation{empty})"


def rate_text(plan: Record) -> str:
    config = (plan or {}).get("config") or {}
    if "learning_rate" not in config:
        return ""
    warmup = f", warm-up {count_of(plan['warmup_steps'], 'step')}" if plan and plan.get("warmup_steps") else ""
    return f"{config['learning_rate']:g}, {config.get('schedule', '')}{warmup}"
