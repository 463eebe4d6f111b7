"""Attention over a packed row by documents, beside sdpa under a dense mask: forward and backward, CPU or GPU.

Rows of 1,024 to 32,768 tokens in documents of 512: time and memory per token must not grow by documents. Under a mask
they do, so that is measured up to MASKED tokens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from benchmarks.measuring import machine_facts, precisions

HEADS, WIDTH, DOCUMENT, ROUNDS = 8, 64, 512, 3
TOKENS, MASKED = (1024, 2048, 4096, 8192, 16384, 32768), 8192
BAR, BAR_TOKENS = 4.0, 4096
LINEAR = 1.25  # so many times as much per token, at most, as in the row in which it is least


def inputs_of(tokens: int, precision: str) -> list[Any]:
    import torch

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    draw = torch.Generator().manual_seed(0)
    made = [torch.randn(1, HEADS, tokens, WIDTH, generator=draw).to(dtype) for _ in range(3)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [tensor.to(device).requires_grad_() for tensor in made]


def by_documents(tokens: int) -> Callable[..., Any]:
    import torch

    from training.step.document_attention import attend, attending, starts_of

    lengths = [DOCUMENT] * (tokens // DOCUMENT)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    attending(lengths, starts_of(lengths).to(device))
    module = torch.nn.Module()
    return lambda query, key, value: attend(module, query, key, value, None)[0]


def by_mask(tokens: int) -> Callable[..., Any]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    device = "cuda" if torch.cuda.is_available() else "cpu"
    document = torch.arange(tokens, device=device) // DOCUMENT
    mask = (document[:, None] == document[None]).tril()
    return lambda query, key, value: scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)


def measured(make: Callable[[int], Callable[..., Any]], tokens: int, precision: str) -> dict[str, Any]:
    """Return the least time of a forward and backward pass, and the bytes of the tensors kept between them."""
    import torch

    torch.set_num_threads(1)
    tensors, attention = inputs_of(tokens, precision), make(tokens)
    cpu_s, wall_s = [], []
    kept: dict[int, int] = {}

    def note(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for _ in range(1 + ROUNDS):
        cpu, wall = time.process_time(), time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = attention(*tensors)
        output.backward(torch.ones_like(output))
        if output.is_cuda:
            torch.cuda.synchronize()
        cpu_s.append(time.process_time() - cpu)
        wall_s.append(time.perf_counter() - wall)
        if len(cpu_s) == 1:
            bytes_kept = sum(kept.values())
    same = output.detach().float().cpu()
    return {"cpu_ms": min(cpu_s[1:]) * 1e3, "wall_ms": min(wall_s[1:]) * 1e3, "kept_mb": bytes_kept / 1e6, "out": same}


def show(variant: str, tokens: int, precision: str, found: dict[str, Any]) -> None:
    numbers = {key: round(value, 3) for key, value in found.items() if key != "out"}
    line = {"case": "attention", "variant": variant, "tokens": tokens, "precision": precision, **numbers}
    print(json.dumps({**line, **machine_facts()}), flush=True)


def compared(tokens: int, precision: str, key: str) -> tuple[dict[str, Any], str]:
    """Measure a row by documents and, unless it is too long, under a mask; return the first and a row of the table."""
    import torch

    ours = measured(by_documents, tokens, precision)
    show("by documents", tokens, precision, ours)
    per_token = f"{ours[key] * 1e3 / tokens:7.2f} us and {ours['kept_mb'] * 1e3 / tokens:6.2f} kB a token"
    row = f"{tokens:>6} {precision}  {per_token}"
    if tokens > MASKED:
        return ours, row
    masked = measured(by_mask, tokens, precision)
    show("sdpa, dense mask", tokens, precision, masked)
    if not torch.allclose(ours["out"], masked["out"], atol=2e-2 if precision == "bf16" else 1e-5):
        raise SystemExit("void: attention by documents differs from that under a mask")
    ratio = masked[key] / ours[key]
    bar = f"  bar {BAR:g} {'met' if ratio >= BAR else 'NOT met'}" if tokens == BAR_TOKENS else ""
    kept = masked["kept_mb"] / ours["kept_mb"]
    return ours, f"{row}  under a mask {ratio:.2f} times the time and {kept:.2f} times the memory{bar}"


def main() -> None:
    import torch

    key = "wall_ms" if torch.cuda.is_available() else "cpu_ms"
    table = []
    for precision in precisions():
        ours = {}
        for tokens in TOKENS:
            ours[tokens], row = compared(tokens, precision, key)
            table.append(row)
        for what, name in ((key, "time"), ("kept_mb", "memory")):
            each = [found[what] / tokens for tokens, found in ours.items()]
            growth = each[-1] / min(each)
            linear = "linear" if growth <= LINEAR else "NOT linear"
            table.append(f"{precision} {name} a token at {TOKENS[-1]} tokens: {growth:.2f} times the least, {linear}")
    print("\n".join(table))
