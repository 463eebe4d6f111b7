"""Head and loss on trained tokens, beside the plain loss of transformers: peak extra memory, CPU time, the loss.

Each variant runs in a process of its own. Its peak is the kernel's (VmHWM, reset before), less what was there before,
as a share of the fp32 logits of all tokens; it includes the gradients of head and hidden states, which both return.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring import machine_facts

SHAPES = ((32_000, 4096), (128_256, 2048))  # vocabulary, tokens
WIDTH, TRAINED_SHARE, ROUNDS = 512, 0.4, 3
BAR_PEAK, BAR_TIME, BAR_LOSS = 0.25, 0.6, 1e-4


def status_bytes(key: str) -> int:
    """Return a size from this process's /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def plain(hidden: Any, weight: Any, labels: Any) -> Any:
    """What transformers does for a causal model: logits of all tokens, upcast, cross entropy."""
    from torch.nn.functional import linear
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits = linear(hidden, weight)[None]
    return ForCausalLMLoss(logits, labels=None, vocab_size=len(weight), shift_labels=labels[None])


def shardline(hidden: Any, weight: Any, labels: Any) -> Any:
    from training.step.loss import LogitRule, head_loss

    places = (labels >= 0).nonzero()[:, 0]
    return head_loss(hidden.index_select(0, places), [weight, None], labels[places], LogitRule()) / len(places)


VARIANTS = {"plain": plain, "shardline": shardline}


def measured(variant: str, vocab: int, tokens: int, precision: str) -> dict[str, float]:
    """Take forward and backward three times; the least CPU time counts, and the largest peak."""
    import torch

    torch.set_num_threads(1)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=draw).to(dtype).requires_grad_()
    weight = (torch.randn(vocab, WIDTH, generator=draw) * 0.02).to(dtype).requires_grad_()
    labels = torch.randint(vocab, (tokens,), generator=draw)
    labels[torch.rand(tokens, generator=draw) >= TRAINED_SHARE] = -100
    cpu_s, wall_s, peaks = [], [], []
    for _ in range(1 + ROUNDS):
        hidden.grad = weight.grad = None
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
        before, cpu, wall = status_bytes("VmRSS"), time.process_time(), time.perf_counter()
        loss = VARIANTS[variant](hidden, weight, labels)
        loss.backward()
        cpu_s.append(time.process_time() - cpu)
        wall_s.append(time.perf_counter() - wall)
        peaks.append(status_bytes("VmHWM") - before)
    gradients = {"hidden": hidden.grad, "weight": weight.grad}
    norms = {name: float(grad.float().norm()) for name, grad in gradients.items() if grad is not None}
    taken = {"cpu_s": min(cpu_s[1:]), "wall_s": min(wall_s[1:]), "peak_mb": max(peaks[1:]) / 1e6}
    return {**taken, "loss": float(loss.detach()), **{f"norm_{name}": norm for name, norm in norms.items()}}


def in_a_process(variant: str, vocab: int, tokens: int, precision: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training.ce", variant, str(vocab), str(tokens), precision]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    table = []
    for vocab, tokens in SHAPES:
        for precision in ("bf16", "fp32"):
            runs = {variant: in_a_process(variant, vocab, tokens, precision) for variant in VARIANTS}
            for variant, run in runs.items():
                plainly = runs["plain"]
                line = {
                    "case": "ce",
                    "variant": variant,
                    "vocab": vocab,
                    "tokens": tokens,
                    "precision": precision,
                    **{key: round(value, 5) for key, value in run.items()},
                    "peak_by_logits": round(run["peak_mb"] / (4e-6 * vocab * tokens), 3),
                    "weight_gradient_by_logits": round(WIDTH / tokens * (1 if precision == "fp32" else 0.5), 3),
                    "cpu_by_plain": round(run["cpu_s"] / plainly["cpu_s"], 3),
                    "loss_difference": abs(run["loss"] - plainly["loss"]),
                    **machine_facts(),
                }
                print(json.dumps(line), flush=True)
                table.append(line)
    for line in (line for line in table if line["variant"] == "shardline"):
        met = (
            line["peak_by_logits"] <= BAR_PEAK
            and line["cpu_by_plain"] <= BAR_TIME
            and line["loss_difference"] <= BAR_LOSS
        )
        shape = f"{line['vocab']:>7} x {line['tokens']}  {line['precision']}"
        found = (
            f"peak {line['peak_by_logits']:.2f}  time {line['cpu_by_plain']:.2f}  loss {line['loss_difference']:.0e}"
        )
        print(f"{shape}  {found}  {'met' if met else 'NOT met'}")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    name, size, count, kind = sys.argv[1:]
    print(json.dumps(measured(name, int(size), int(count), kind)))
