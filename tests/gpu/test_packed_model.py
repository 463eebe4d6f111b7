"""On a GPU documents are kept apart by torch's kernel; what comes out is what the CPU computes, and nothing leaks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from training.step.batches import MicroBatch, micro_batch_of
from training.step.document_attention import attend, attending, has_kernel, starts_of
from training.step.isolation import check_isolation, median
from training.step.loss import HeadLoss, LogitRule, summed_loss
from training.step.packed_model import Isolation, PackedModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch sees on this machine"),
]

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "vocab_size": 1031,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GPT2 = {"n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 512, "vocab_size": 1031}
MAMBA = {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "vocab_size": 1031}
FAMILIES: dict[str, tuple[dict[str, Any], Isolation]] = {
    "llama": (SIZES, Isolation.BY_ATTENTION),
    "mistral": ({**SIZES, "sliding_window": 40}, Isolation.BY_ATTENTION),
    "gpt2": (GPT2, Isolation.BY_ATTENTION),
    "gemma2": ({**SIZES, "sliding_window": 40}, Isolation.BY_ATTENTION),
    "gpt_oss": ({**SIZES, **EXPERTS, "sliding_window": 40}, Isolation.BY_ATTENTION),
    "mixtral": ({**SIZES, **EXPERTS}, Isolation.BY_ATTENTION),
    "mamba": (MAMBA, Isolation.ONE_A_ROW),
}
LENGTHS = [200, 1, 90, 60, 33]


def made(kind: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **FAMILIES[kind][0])).eval()


def packed_row() -> MicroBatch:
    ids = torch.randint(2, 1031, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    return micro_batch_of(ids, torch.ones_like(ids, dtype=torch.bool), [LENGTHS], index=0)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_model_proves_its_isolation_on_the_gpu_and_computes_what_the_cpu_computes(kind: str) -> None:
    model = made(kind)
    with torch.no_grad():
        cpu = PackedModel(model, model, torch.device("cpu"))
        check_isolation(cpu, 384, [packed_row()], list)
        expected = [cpu.hidden(part) for part in cpu.parts(packed_row())]
    fresh = made(kind).to("cuda", torch.bfloat16)
    with torch.no_grad():
        gpu = PackedModel(fresh, fresh, torch.device("cuda"))
        check = check_isolation(gpu, 384, [packed_row()], list)
        found = [gpu.hidden(part).cpu() for part in gpu.parts(packed_row())]
    assert (gpu.isolation, check.rule) == (FAMILIES[kind][1], cpu.rule)
    assert all(median(a, b) < 5e-2 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_the_kernels_outputs_and_gradients_are_those_of_the_cpu(window: int | None, key_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, sum(LENGTHS), 64) for heads in (4, key_heads, key_heads)]
    exact = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    half = [tensor.detach().to("cuda", torch.bfloat16).requires_grad_() for tensor in exact]
    module = torch.nn.Identity()
    attending(LENGTHS * 2)
    expected, _ = attend(module, exact[0], exact[1], exact[2], None, sliding_window=window)
    attending(LENGTHS * 2, starts_of(LENGTHS * 2).to("cuda"))
    found, _ = attend(module, half[0], half[1], half[2], None, sliding_window=window)
    assert (found.cpu().float() - expected).norm() / expected.norm() < 1e-2
    torch.autograd.backward([expected.square().sum(), found.float().square().sum()])
    for tensor, other in zip(half, exact, strict=True):
        assert tensor.grad is not None and other.grad is not None
        assert (tensor.grad.cpu().float() - other.grad).norm() / other.grad.norm() < 2e-2


def test_the_kernel_is_what_plain_bf16_attention_takes() -> None:
    from training.step.document_attention import Rule

    query = torch.zeros(8, 4, 64, device="cuda", dtype=torch.bfloat16)
    plain = Rule(scale=None, dropout=0.0, window=None, soft_cap=None, sinks=None)
    assert has_kernel(query, query, plain)
    assert not has_kernel(query.float(), query.float(), plain)


@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(cap=30.0)], ids=str)
def test_the_loss_in_chunks_is_that_of_all_logits(rule: LogitRule) -> None:
    generator = torch.Generator(device="cuda").manual_seed(0)
    hidden = torch.randn(3000, 256, generator=generator, device="cuda").bfloat16().requires_grad_()
    weight = (torch.randn(50_000, 256, generator=generator, device="cuda") / 16).bfloat16().requires_grad_()
    targets = torch.randint(50_000, (3000,), generator=generator, device="cuda")
    expected = summed_loss(rule((hidden @ weight.T).float()), targets)
    wanted = torch.autograd.grad(expected, (hidden, weight))
    head_loss: Callable[..., torch.Tensor] = HeadLoss.apply
    found = head_loss(hidden, weight, None, targets, rule)
    got = torch.autograd.grad(found, (hidden, weight))
    assert math.isclose(float(found), float(expected), rel_tol=1e-5)
    for gradient, other in zip(got, wanted, strict=True):
        assert float((gradient - other).norm() / other.norm()) < 1e-2
