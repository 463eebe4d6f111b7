"""What the YAML fixes of attention and loss is what is used, or is refused."""

from __future__ import annotations

import pytest
import torch

from cluster.errors import TrainingError
from tests.training.step.test_activation_checkpointing import batch, model_of
from training.config import Attention
from training.step.isolation import check_isolation
from training.step.packed_model import Isolation, PackedModel

ATTENTIONS: tuple[Attention, ...] = ("auto", "documents", "sdpa", "eager")


def packed(name: str = "llama", attention: Attention = "auto", chunk_tokens: int | None = None) -> PackedModel:
    model = model_of(name)
    made = PackedModel(model, model, torch.device("cpu"))
    made.attend_by(attention)
    made.chunk_loss(chunk_tokens)
    return made


def checked(model: PackedModel) -> Isolation:
    model.model.eval()
    isolation = check_isolation(model, 96, [batch()], list).isolation
    model.model.train()
    return isolation


def test_every_attention_gives_the_same_loss_and_isolates_documents() -> None:
    models = [packed(attention=attention) for attention in ATTENTIONS]
    assert [checked(model) for model in models] == [Isolation.BY_ATTENTION] * 2 + [Isolation.BY_MASK] * 2
    losses = [float(model.loss(batch()).summed.detach()) for model in models]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)
    assert models[2].model.config._attn_implementation == "sdpa"
    assert models[3].model.config._attn_implementation == "eager"


def test_the_kernel_is_refused_where_it_cannot_be_used() -> None:
    with pytest.raises(TrainingError, match=r"with train\.attention: varlen: .* needs a GPU.*set train\.attention: au"):
        checked(packed(attention="varlen"))
    checked(packed())  # and is not asked for by the next model


@pytest.mark.parametrize("tokens", [1, 7, 1000])
def test_the_loss_does_not_depend_on_the_size_of_its_chunks(tokens: int) -> None:
    models = packed(), packed(chunk_tokens=tokens)
    losses = [model.loss(batch()).trained() for model in models]
    for loss in losses:
        torch.autograd.backward(loss)
    assert float(losses[1].detach()) == pytest.approx(float(losses[0].detach()), rel=1e-6)
    expected = dict(models[0].model.named_parameters())
    for name, parameter in models[1].model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5)
