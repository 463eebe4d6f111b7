"""A causal language model called with packed rows, and how it isolates the documents of a row.

Training, validation, replay and evaluation all use this one path, with or without DeepSpeed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from cluster.errors import ConfigError, TrainingError
from training.config import ActivationCheckpointing, Attention
from training.step import document_attention
from training.step.activation_checkpointing import require_checkpointing
from training.step.batches import MicroBatch, one_document_a_row
from training.step.loss import LogitRule, LossHead, Trained, each_loss, summed_loss


class Isolation(enum.Enum):
    """How the documents of a packed row are isolated from each other; the fastest way first."""

    BY_ATTENTION = "attention by documents"
    BY_MASK = "a mask made from positions that restart"
    ONE_A_ROW = "one document a row"


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The summed loss of `tokens` trained tokens and, for a mixture of experts, its routers' loss.

    `auxiliary` is per token and already weighted; None if the model's configuration does not ask for it.
    """

    summed: torch.Tensor
    auxiliary: torch.Tensor | None
    tokens: int

    def trained(self) -> torch.Tensor:
        """Return the loss to differentiate, summed over tokens."""
        return self.summed if self.auxiliary is None else self.summed + self.auxiliary * self.tokens

    def sums(self) -> torch.Tensor:
        """Return the summed loss of the tokens and of the routers, [2] in fp64, detached."""
        auxiliary = torch.zeros_like(self.summed) if self.auxiliary is None else self.auxiliary * self.tokens
        return torch.stack([self.summed.detach().double(), auxiliary.detach().double()])


class PackedModel:
    """A model with its loss. `call` is the model itself or DeepSpeed's engine around it.

    Its configuration object is changed, so it must not be shared with another model.
    """

    def __init__(self, model: PreTrainedModel, call: Callable[..., Any], device: torch.device) -> None:
        self.model, self.call, self.device = model, call, device
        self.head = LossHead(output_head(model))
        self.rule: LogitRule | None = LogitRule()
        self.own_attention: str = model.config._attn_implementation
        self.attention: Attention = "auto"
        self.auxiliary_weight = auxiliary_weight(model)
        self.border = length_border(model)
        self.is_compiled = False
        self.checkpointing: ActivationCheckpointing = "none"
        """What the model was told to compute again in backward; "none" also once it is known to do so."""
        self.isolate(next(iter(self.ways())))

    def attend_by(self, attention: Attention) -> None:
        """Fix how attention is computed. Raises ConfigError if the model does not let it be chosen."""
        if attention != "auto" and not document_attention.can_attend_by_documents(self.model):
            raise ConfigError(
                f"train.attention: {attention}: the layers of {type(self.model).__name__} do not look up their"
                " attention function by name; set auto"
            )
        self.attention = attention
        document_attention.CURRENT.kernel = {"varlen": True, "documents": False}.get(attention)
        if attention in ("sdpa", "eager"):
            self.own_attention = attention
        self.isolate(self.ways()[0])

    def chunk_loss(self, tokens: int | None) -> None:
        """Fix how many trained tokens have logits at a time. Raises ConfigError if the head computes them all."""
        if tokens is not None and not self.head.is_linear:
            raise ConfigError(
                "train.loss_chunk_tokens: an adapter on the output head needs the logits of all trained tokens; leave"
                " this key out, or the head out of train.lora.target_modules"
            )
        self.head.chunk_tokens = tokens

    def ways(self) -> list[Isolation]:
        """Return the ways this model might isolate documents, fastest first; the isolation check chooses one."""
        if self.attention in ("varlen", "documents"):
            return [Isolation.BY_ATTENTION]
        by_attention = self.attention == "auto" and document_attention.can_attend_by_documents(self.model)
        return [way for way in Isolation if way is not Isolation.BY_ATTENTION or by_attention]

    def isolate(self, isolation: Isolation) -> None:
        """Isolate documents in this way from now on."""
        self.isolation = isolation
        by_attention = isolation is Isolation.BY_ATTENTION
        document_attention.attend_with(self.model, document_attention.NAME if by_attention else self.own_attention)

    def parts(self, batch: MicroBatch) -> list[MicroBatch]:
        """Return the forward passes of a micro batch: the batch itself, or batches with one document per row."""
        return one_document_a_row(batch, self.border) if self.isolation is Isolation.ONE_A_ROW else [batch]

    def loss(self, batch: MicroBatch) -> Loss:
        """Return the loss of one of the `parts`."""
        trained = batch.trained.to(self.device)
        if self.rule is None:
            output = self.forward(batch)
            summed = summed_loss(output.logits.flatten(0, 1)[trained.places], trained.targets)
        else:
            summed, output = self.loss_in_head(batch, trained, self.rule)
        if self.checkpointing != "none" and self.model.training and torch.is_grad_enabled():
            require_checkpointing(self.model, self.checkpointing)
            self.checkpointing = "none"
        return Loss(summed=summed, auxiliary=self.auxiliary(output), tokens=len(trained.targets))

    def auxiliary(self, output: Any) -> torch.Tensor | None:
        """Return the weighted routers' loss; None if the configuration does not ask for it."""
        if self.auxiliary_weight is None:
            return None
        found: torch.Tensor | None = getattr(output, "aux_loss", None)
        if found is None:
            raise no_auxiliary(self.model)
        return found * self.auxiliary_weight

    def loss_in_head(self, batch: MicroBatch, trained: Trained, rule: LogitRule) -> tuple[torch.Tensor, Any]:
        """Return the summed loss, computed in the head, and the model's output object."""
        with self.head.acting(lambda hidden: self.head.loss(hidden, trained, rule)):
            output = self.forward(batch)
        return self.head.take().reshape(()), output

    @torch.no_grad()
    def token_losses(self, batch: MicroBatch) -> torch.Tensor:
        """Return the loss [tokens] of each trained token of one of the `parts`, in the order of `batch.trained`."""
        trained = batch.trained.to(self.device)
        rule = self.rule
        if rule is None:
            return each_loss(self.forward(batch).logits.flatten(0, 1)[trained.places], trained.targets)
        with self.head.acting(lambda hidden: self.head.token_losses(hidden, trained, rule)):
            self.forward(batch)
        return self.head.take().reshape(-1)

    def hidden(self, batch: MicroBatch) -> torch.Tensor:
        """Return the hidden states [rows, row_tokens, width] that reach the head."""
        with self.head.acting(lambda hidden: hidden):
            self.forward(batch)
        return self.head.take()

    def forward(self, batch: MicroBatch) -> Any:
        """Call the model on a batch, with whatever its way of isolation needs."""
        ids = batch.input_ids.to(self.device, non_blocking=True)
        if self.isolation is Isolation.ONE_A_ROW:  # the plain call: positions count from 0, no mask
            return self.call(input_ids=ids, use_cache=False)
        document_attention.attending(batch.segments, batch.starts.to(self.device, non_blocking=True))
        positions = batch.position_ids.to(self.device, non_blocking=True)
        return self.call(input_ids=ids, position_ids=positions, use_cache=False)


def output_head(model: PreTrainedModel) -> torch.nn.Module:
    """Return the module that turns hidden states into logits."""
    head: torch.nn.Module | None = model.get_output_embeddings()
    if head is None:
        raise TypeError(f"{type(model).__name__} has no output head")
    return head


def length_border(model: PreTrainedModel) -> int | None:
    """Return the length beyond which a row gets other rotary frequencies (LongRoPE, as in Phi 3); else None."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    return rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None


def auxiliary_weight(model: PreTrainedModel) -> float | None:
    """Return the weight of the routers' loss; None if the configuration does not ask for it.

    Raises TrainingError if it asks for a loss that the model does not have.
    """
    config = model.config.get_text_config()
    if not getattr(config, "output_router_logits", False):
        return None
    if getattr(config, "router_aux_loss_coef", None) is None:
        raise no_auxiliary(model)
    return float(config.router_aux_loss_coef)


def no_auxiliary(model: PreTrainedModel) -> TrainingError:
    return TrainingError(
        f"config.json asks for the routers' loss (output_router_logits: true), but {type(model).__name__} has none; set"
        " output_router_logits to false"
    )
