"""Compiled layers compute what the others do. inductor itself takes a minute: docs/training.md has its figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cluster.errors import ClusterError, ConfigError
from tests.training.step.test_activation_checkpointing import batch, model_of, packed_of
from training.config import ActivationCheckpointing, TrainConfig
from training.models.new_weights import layer_names
from training.step import compiled_layers
from training.step.compiled_layers import compile_layers, require_compiler


def loss_and_gradients(model: Any, kind: ActivationCheckpointing) -> tuple[float, dict[str, torch.Tensor]]:
    loss = packed_of(model, kind).loss(batch()).trained()
    torch.autograd.backward(loss)
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["none", "full"])
def test_compiled_layers_give_the_same_loss_and_gradients(kind: ActivationCheckpointing) -> None:
    expected, gradients = loss_and_gradients(model_of("llama", 2), kind)
    model = model_of("llama", 2)
    calls: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(len(inputs))
        return graph

    compile_layers([model.get_submodule(name) for name in layer_names(model)], backend=backend)
    loss, found = loss_and_gradients(model, kind)
    assert calls and loss == pytest.approx(expected, rel=1e-6)
    assert all(torch.allclose(found[name], gradients[name], atol=1e-5) for name in gradients)
    before = len(calls)
    loss_and_gradients(model, kind)
    assert len(calls) == before, "a second step compiled again"


def test_a_machine_without_a_compiler_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_layers, "cpp_compiler", lambda: None)
    with pytest.raises(ClusterError, match=r"train\.compile: layers: there is no C\+\+ compiler .* or set none"):
        require_compiler()


def test_layers_of_another_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="set none"):
        compile_layers([torch.nn.Linear(2, 2)])


def test_selective_checkpointing_cannot_look_into_compiled_layers() -> None:
    with pytest.raises(ValueError, match="leaves nothing of a layer"):
        TrainConfig.model_validate({"compile": "layers", "activation_checkpointing": "selective"})
