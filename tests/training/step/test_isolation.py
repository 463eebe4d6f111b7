"""Before training, a check on the model itself that documents packed into a row do not see each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cluster.errors import TrainingError
from training.step import document_attention as documents
from training.step.batches import MicroBatch, micro_batch_of, nothing_of
from training.step.isolation import IsolationCheck, check_isolation
from training.step.loss import LogitRule
from training.step.packed_model import Isolation, PackedModel

ROPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
OPT = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32}
WINDOW = {**ROPE, "sliding_window": 8}
CHUNKS = {**ROPE, "head_dim": 8, "attention_chunk_size": 8, "intermediate_size_mlp": 48, "num_local_experts": 2}
LONG_ROPE = {
    "original_max_position_embeddings": 20,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0]},
}
EXPECTED: dict[str, tuple[dict[str, Any], Isolation, LogitRule]] = {
    "llama": (ROPE, Isolation.BY_ATTENTION, LogitRule()),
    "gpt2": (GPT2, Isolation.BY_ATTENTION, LogitRule()),
    "opt": (OPT, Isolation.BY_ATTENTION, LogitRule()),
    "mistral": (WINDOW, Isolation.BY_ATTENTION, LogitRule()),
    "gemma2": ({**WINDOW, "head_dim": 8}, Isolation.BY_ATTENTION, LogitRule(cap=30.0)),
    "granite": ({**ROPE, "logits_scaling": 8.0}, Isolation.BY_ATTENTION, LogitRule(scale=0.125)),
    "llama4_text": (CHUNKS, Isolation.BY_MASK, LogitRule()),
    "falcon": ({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}, Isolation.BY_MASK, LogitRule()),
    "phi3": ({**ROPE, **LONG_ROPE}, Isolation.ONE_A_ROW, LogitRule()),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, Isolation.ONE_A_ROW, LogitRule()),
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}, Isolation.ONE_A_ROW, LogitRule()),
}


def made(kind: str, settings: dict[str, Any]) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **settings, vocab_size=97, bos_token_id=0, eos_token_id=1)
        model = AutoModelForCausalLM.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if "norm" not in name and parameter.dim() > 1:  # as small as they begin, half of a model is not to be seen
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def checked_model(model: PreTrainedModel) -> tuple[PackedModel, IsolationCheck]:
    packed = PackedModel(model, model, torch.device("cpu"))
    return packed, check_isolation(packed, 96, [packed_row()], list)


LENGTHS, PADDING = [41, 1, 13, 24], 17


def packed_row() -> MicroBatch:
    ids = torch.randint(2, 97, (2, sum(LENGTHS) + PADDING), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, [0, 41, 42, 55]] = False
    mask[:, sum(LENGTHS) :] = False
    return micro_batch_of(ids, mask, [LENGTHS, LENGTHS], index=0)


EXPERTS = {**ROPE, "num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "falcon", "mamba", "mixtral", "gpt_oss"])
def test_a_micro_batch_with_nothing_trained_gives_every_weight_a_zero_gradient(kind: str) -> None:
    settings, isolation, rule = EXPECTED.get(kind, (EXPERTS, Isolation.BY_ATTENTION, LogitRule()))
    model = made(kind, settings).train()
    packed = PackedModel(model, model, torch.device("cpu"))
    packed.isolate(isolation)
    packed.rule = rule
    loss = packed.loss(nothing_of(packed_row()))
    torch.autograd.backward(loss.trained())
    assert loss.sums().tolist() == [0, 0]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name  # of NaN, any() is true


@pytest.mark.parametrize("kind", EXPECTED)
@torch.no_grad()
def test_a_packed_row_has_the_loss_of_its_documents_alone_whatever_the_architecture(kind: str) -> None:
    settings, isolation, rule = EXPECTED[kind]
    model = made(kind, settings)
    alone = 0.0
    batch = packed_row()
    for ids, mask in zip(batch.input_ids, batch.loss_mask, strict=True):
        for document, trained in zip(ids.split([*LENGTHS, PADDING]), mask.split([*LENGTHS, PADDING]), strict=True):
            log_p = torch.log_softmax(model(input_ids=document[None], use_cache=False).logits[0].float(), dim=-1)
            alone -= sum(float(log_p[t - 1, document[t]]) for t in range(1, len(document)) if trained[t])
    packed, check = checked_model(model)
    assert (check.isolation, check.rule) == (isolation, rule)
    assert sum(float(packed.loss(part).summed) for part in packed.parts(batch)) == pytest.approx(alone, rel=1e-5)


def test_the_check_says_what_one_document_per_row_costs() -> None:
    _, check = checked_model(made("bloom", EXPECTED["bloom"][0]))
    text = check.as_text()
    assert "one document a row" in text and "documents in a row see each other" in text
    assert f"takes {check.passes:.1f} forward passes" in text and check.passes > 1 and check.tokens > 0.5


def test_a_model_that_leaks_whatever_is_done_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama", ROPE)
    forward = model.model.forward

    def leaking(**inputs: object) -> object:
        output = forward(**inputs)
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean()
        return output

    monkeypatch.setattr(model.model, "forward", leaking)
    with pytest.raises(TrainingError, match="cannot be trained on packed rows: documents in a row see each other"):
        checked_model(model)


def test_a_loss_that_is_not_that_of_the_models_logits_is_taken_from_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama", ROPE)
    forward = model.forward

    def shifted(**inputs: object) -> object:
        output = forward(**inputs)
        if output.logits.shape[-1] == 97:
            output.logits = output.logits + torch.linspace(0, 3, 97)
        return output

    monkeypatch.setattr(model, "forward", shifted)
    packed, check = checked_model(model)
    batch = packed_row()
    documents.attending(batch.segments)
    logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits[batch.trained.places], batch.trained.targets, reduction="sum")
    assert check.rule is None and "logits of all tokens" in check.as_text()
    assert float(packed.loss(batch).summed) == pytest.approx(float(expected), rel=1e-6)


@torch.no_grad()
def test_a_mixture_of_experts_is_trained_on_what_its_own_loss_is() -> None:
    experts = {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.3}
    model = made("mixtral", {**ROPE, **experts})
    ids = torch.randint(2, 97, (1, 40), generator=torch.Generator().manual_seed(2))
    packed = PackedModel(model, model, torch.device("cpu"))
    loss = packed.loss(micro_batch_of(ids, torch.ones_like(ids, dtype=torch.bool), [[40]], index=0))
    packed.isolate(Isolation.ONE_A_ROW)
    expected = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert loss.auxiliary is not None and float(loss.auxiliary) > 0.1
    assert float(loss.summed / 39 + loss.auxiliary) == pytest.approx(float(expected), rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("model_type", "config"), [("llama4_text", CHUNKS), ("glm4_moe", {**ROPE, "head_dim": 8})])
def test_a_loss_of_routers_that_the_model_does_not_have_is_refused(model_type: str, config: dict[str, Any]) -> None:
    model = made(model_type, {**config, "output_router_logits": True})
    with pytest.raises(TrainingError, match=f"{type(model).__name__} has none; set output_router_logits to false"):
        checked_model(model)
