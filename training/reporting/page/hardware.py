"""What a run computed on, and how much of it the model used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.costs.gpus import peak_of
from training.reporting.run_state import RunState


@dataclass(frozen=True, kw_only=True)
class Compute:
    """What the model costs for a token, and what all ranks together could do; None if that is not known."""

    flops_per_token: float
    peak_flops: float | None
    explained: str


def compute_of(state: RunState, plan: Mapping[str, Any] | None) -> Compute:
    """Return what is needed for the MFU of the newest attempt.

    A trained parameter costs 6 operations a token, a frozen one 4 (no gradient of its own); attention is left out.
    """
    device, ranks = device_of(state), int(state.attempts[-1].start["world_size"]) if state.attempts else 0
    devices = {attempt.start.get("device") for attempt in state.attempts}
    sizes = {attempt.start["world_size"] for attempt in state.attempts}
    trained, parameters = ((plan or {}).get(key) for key in ("trained_parameters", "parameters"))
    if trained is None or not parameters or not ranks:
        return Compute(flops_per_token=0.0, peak_flops=None, explained="no plan tells the operations per token")
    cost = 6.0 * trained + 4.0 * (parameters - trained)
    peak = peak_of(device)
    if peak is None:
        why = f"the peak of {device} is not known" if device else "the device was not recorded"
        return Compute(flops_per_token=cost, peak_flops=None, explained=why)
    if len(devices) > 1 or len(sizes) > 1:
        return Compute(flops_per_token=cost, peak_flops=None, explained="the attempts ran on different hardware")
    told = f"{cost / parameters:.3g} x parameters operations per token, attention left out, of {peak / 1e12:g} TFLOP/s"
    return Compute(flops_per_token=cost, peak_flops=peak * ranks, explained=f"{told} (bf16, dense) per {device}.")


def device_of(state: RunState) -> str:
    """Return the model of the device of the newest attempt that recorded one."""
    found = [attempt.start["device"] for attempt in state.attempts if attempt.start.get("device")]
    return str(found[-1]) if found else ""


def hardware_text(state: RunState) -> str:
    """Return ranks, device and hosts of the newest attempt."""
    if not state.attempts:
        return ""
    start = state.attempts[-1].start
    ranks = f"{start['world_size']} {'rank' if start['world_size'] == 1 else 'ranks'}"
    device = start.get("device") or "a device that was not recorded"
    host = f", first host {start['host']}" if start.get("host") else ""
    return f"{ranks} on {device}{host}"
