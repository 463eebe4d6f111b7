"""Attention over a packed row by documents, beside sdpa under a dense mask: forward and backward, CPU or GPU.

The second table is of rows from 1,024 to 32,768 tokens by documents: time and memory per token must not grow.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from benchmarks.measuring import machine_facts

HEADS, WIDTH, DOCUMENT, ROUNDS = 8, 64, 512, 5
BAR = 4.0


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


def main() -> None:
    import torch

    table = []
    for precision in ("bf16", "fp32"):
        ours, masked = (measured(make, 4096, precision) for make in (by_documents, by_mask))
        if not torch.allclose(ours["out"], masked["out"], atol=2e-2 if precision == "bf16" else 1e-5):
            raise SystemExit("void: attention by documents differs from that under a mask")
        show("by documents", 4096, precision, ours)
        show("sdpa, dense mask", 4096, precision, masked)
        key = "wall_ms" if torch.cuda.is_available() else "cpu_ms"
        ratio = masked[key] / ours[key]
        table.append(f"4096 {precision}  {ratio:.2f} times the mask's speed  {'met' if ratio >= BAR else 'NOT met'}")
    for tokens in (1024, 2048, 4096, 8192, 16384, 32768):
        found = measured(by_documents, tokens, "bf16")
        show("by documents", tokens, "bf16", found)
        time_us, kilobytes = found["cpu_ms"] * 1e3 / tokens, found["kept_mb"] * 1e3 / tokens
        table.append(f"{tokens:>6} bf16  {time_us:.2f} us and {kilobytes:.2f} kB kept per token")
    print("\n".join(table))
