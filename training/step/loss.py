"""The loss that is trained and reported, computed inside the output head and on the trained tokens alone.

Logits are the largest tensor of a step: rows x row_tokens x vocabulary. Masked tokens need none, so hidden states are
selected before the head. The rest goes through head and cross entropy a chunk of tokens at a time, which also computes
the gradients, so that no chunk's logits are kept: chunked cross entropy with gradients in forward, as in Liger Kernel
(Hsu et al. 2024, arXiv 2410.10989), here in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

CHUNK_LOGITS = 1 << 22  # fp32 logits in memory at a time: 16 MB, more where the width asks for it
BLOCK_ON_CPU, BLOCK_ON_GPU = 1 << 21, 1 << 26  # numbers of the weight's gradient that a chunk makes at a time
SCORED_TOKENS = 256  # tokens whose logits are in memory at a time where each has a loss of its own


@dataclass(frozen=True, kw_only=True)
class StepStats:
    """The outcome of an optimizer step, the same on every rank. `skipped` is the reason if it changed no weight.

    `loss` is the mean over trained tokens; `auxiliary_loss` is the routers' loss of a mixture of experts trained on it.
    `document_tokens` and `document_squares` are the sums of the documents' lengths and of their squares.
    Only `times`, in seconds, are this rank's own.
    """

    loss: float
    gradient_norm: float
    auxiliary_loss: float | None = None
    skipped: str | None = None
    document_tokens: int = 0
    document_squares: int = 0
    times: Mapping[str, float] = field(default_factory=dict)


def summed_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the sum of -ln p(target) in fp32, of logits [tokens, vocab] and targets [tokens]."""
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def each_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return -ln p(target) [tokens] in fp32, of logits [tokens, vocab] and targets [tokens]."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


@dataclass(frozen=True, kw_only=True)
class LogitRule:
    """What a model does to its head's output: y = cap tanh(scale x / cap), or y = scale x without a cap."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        scaled = logits if self.scale == 1.0 else logits * self.scale  # logits are large: no copy for nothing
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)

    def times_derivative(self, gradient: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Turn the gradient of the rule's output, given with that output, into that of its input, in place."""
        if self.scale != 1.0:
            gradient.mul_(self.scale)
        return gradient if self.cap is None else gradient.mul_(1 - (output / self.cap) ** 2)


@dataclass(frozen=True)
class Chunk:
    """Some of the trained tokens: where they are, their hidden states [tokens, width] and targets [tokens].

    `logits` [tokens, vocab] is memory for theirs.
    """

    place: slice
    hidden: torch.Tensor
    targets: torch.Tensor
    logits: torch.Tensor


class HeadLoss(torch.autograd.Function):
    """The summed loss of hidden states [tokens, width] through a linear head [vocab, width], chunk by chunk.

    The gradient of a summed cross entropy by the logits, softmax(y) - onehot(target), needs nothing from backward but
    one scalar factor. So forward computes all gradients while a chunk's logits exist, and backward only scales them.
    """

    @staticmethod
    def forward(  # noqa: PLR0913 - torch passes no keywords, and finds tensors only among the arguments
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        rule: LogitRule,
        chunk_tokens: int | None = None,
    ) -> torch.Tensor:
        wants = ctx.needs_input_grad[:3]
        gradients = HeadGradients.zeros(hidden, weight, bias, wants) if any(wants) else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        places = list(chunks(len(targets), weight.shape[0], weight.shape[1], chunk_tokens))
        longest = max((place.stop - place.start for place in places), default=0)
        logits = hidden.new_empty(longest, weight.shape[0])  # of each chunk in turn: malloc would not always reuse it
        for place in places:
            chunk = Chunk(place, hidden[place], targets[place], logits[: place.stop - place.start])
            total += HeadLoss.of_chunk(chunk, weight, bias, rule, gradients)
        if gradients is not None:
            ctx.save_for_backward(*gradients.tensors(weight.dtype))
        return total

    @staticmethod
    def of_chunk(
        tokens: Chunk, weight: torch.Tensor, bias: torch.Tensor | None, rule: LogitRule, gradients: HeadGradients | None
    ) -> torch.Tensor:
        """Return the loss of a chunk, and add its gradients."""
        if bias is None:
            torch.mm(tokens.hidden, weight.T, out=tokens.logits)
        else:
            torch.addmm(bias, tokens.hidden, weight.T, out=tokens.logits)
        output = rule(tokens.logits.float())  # [tokens, vocab]
        if gradients is None:
            return summed_loss(output, tokens.targets)
        targets = tokens.targets[:, None]
        log_z = log_sums(output)
        loss = (log_z - output.gather(1, targets)).sum()
        # without a cap the output is not needed again: its memory takes the gradient
        of_output = (output - log_z if rule.cap is not None else output.sub_(log_z)).exp_()
        of_output.scatter_add_(1, targets, torch.full_like(log_z, -1.0))
        gradients.add(tokens.place, tokens.hidden, weight, rule.times_derivative(of_output, output).to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *of_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scaled = [None if saved is None else saved.mul_(of_loss[0].to(saved.dtype)) for saved in ctx.saved_tensors]
        return (*scaled, None, None, None)


def log_sums(logits: torch.Tensor) -> torch.Tensor:
    """Return log sum exp of each token's logits [tokens, 1].

    Of some tokens at a time, as torch copies what it is given: the copy would be as large as the logits of the chunk.
    """
    tokens = len(logits) if logits.is_cuda else max(1, CHUNK_LOGITS // 16 // logits.shape[1])
    return torch.cat([some.logsumexp(dim=-1, keepdim=True) for some in torch.split(logits, tokens)])


@dataclass
class HeadGradients:
    """The gradients accumulated over chunks; None where none is needed. Weight and bias are summed in fp32."""

    hidden: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None

    @staticmethod
    def zeros(
        hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, wants: tuple[bool, ...]
    ) -> HeadGradients:
        return HeadGradients(
            hidden=torch.empty_like(hidden) if wants[0] else None,
            weight=torch.zeros_like(weight, dtype=torch.float32) if wants[1] else None,
            bias=torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants[2] else None,
        )

    def add(self, chunk: slice, hidden: torch.Tensor, weight: torch.Tensor, of_logits: torch.Tensor) -> None:
        if self.hidden is not None:
            self.hidden[chunk] = of_logits @ weight
        if self.weight is not None:
            # In blocks of the vocabulary: the product alone would be as large as the gradient.
            ids = max(1, (BLOCK_ON_GPU if hidden.is_cuda else BLOCK_ON_CPU) // hidden.shape[1])
            blocks = torch.split(self.weight, ids), torch.split(of_logits, ids, dim=1)
            for block, of_block in zip(*blocks, strict=True):
                block += of_block.T @ hidden
        if self.bias is not None:
            self.bias += of_logits.sum(0, dtype=torch.float32)

    def tensors(self, dtype: torch.dtype) -> list[torch.Tensor | None]:
        return [None if tensor is None else tensor.to(dtype) for tensor in (self.hidden, self.weight, self.bias)]


def chunks(tokens: int, vocab: int, width: int, size: int | None = None) -> Iterator[slice]:
    """Yield slices of `size` tokens; without it as many as fit into CHUNK_LOGITS, and at least half the width.

    Every chunk adds into the whole weight's gradient [vocab, width], which takes as long as the logits of about that
    many tokens: smaller chunks would spend most of their time there.
    """
    size = size or max(1, CHUNK_LOGITS // vocab, width // 2)
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The trained tokens of a micro batch: `places` [tokens] from which they are predicted, and their ids `targets`.

    Places index the flattened rows, [rows x row_tokens]: the token at p is predicted from the hidden state at p - 1.
    """

    places: torch.Tensor
    targets: torch.Tensor

    def to(self, device: torch.device) -> Trained:
        places, targets = (tensor.to(device, non_blocking=True) for tensor in (self.places, self.targets))
        return Trained(places=places, targets=targets)

    def pinned(self) -> Trained:
        return Trained(places=self.places.pin_memory(), targets=self.targets.pin_memory())


class LossHead:
    """A model's output head, patched so that it can return the loss of the trained tokens instead of all logits.

    The model's own forward pass calls it: everything before the head stays the model's own, and ZeRO-3 has gathered the
    head's weight (outside its module's forward, the weight is empty). The hook that catches the head's output must run
    after DeepSpeed's hooks, so create this only after DeepSpeed has wrapped the model.
    """

    def __init__(self, head: nn.Module) -> None:
        self.head = head
        self.logits: Callable[[torch.Tensor], torch.Tensor] = head.forward
        self.action: Callable[[torch.Tensor], torch.Tensor] = self.logits
        self.returned: torch.Tensor | None = None
        self.chunk_tokens: int | None = None
        head.forward = self.forward
        head.register_forward_hook(self.catch)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.action(hidden)

    def catch(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        """Keep the head's output as DeepSpeed's hooks have wrapped it: backward must pass through them."""
        if self.action is not self.logits:
            self.returned = output

    @contextmanager
    def acting(self, action: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """Make the head apply `action` to the hidden states [rows, row_tokens, width] that reach it."""
        self.action = action
        try:
            yield
        finally:
            self.action = self.logits

    def take(self) -> torch.Tensor:
        """Return the head's latest output and forget it."""
        if self.returned is None:
            raise RuntimeError("the model's forward pass did not call its output head")
        returned: torch.Tensor = self.returned
        self.returned = None
        return returned

    @property
    def is_linear(self) -> bool:
        """Whether the head is a plain matrix and bias, without a LoRA adapter."""
        return isinstance(self.head, nn.Linear) and not hasattr(self.head, "base_layer")

    def loss(self, hidden: torch.Tensor, trained: Trained, rule: LogitRule) -> torch.Tensor:
        """Return the summed loss as [1, 1, 1], since the model handles it as if it were logits."""
        chosen = hidden.flatten(0, -2).index_select(0, trained.places)
        if self.is_linear:
            weights: list[torch.Tensor | None] = [self.head.get_parameter("weight"), self.head._parameters["bias"]]
            if not torch.is_grad_enabled():  # without this, HeadLoss would compute gradients for nothing
                weights = [None if weight is None else weight.detach() for weight in weights]
            loss = head_loss(chosen, weights, trained.targets, rule, self.chunk_tokens)
        else:
            loss = summed_loss(rule(self.logits(chosen).float()), trained.targets)
        return loss.reshape(1, 1, 1)

    def token_losses(self, hidden: torch.Tensor, trained: Trained, rule: LogitRule) -> torch.Tensor:
        """Return the loss of each trained token as [1, tokens, 1], without gradients."""
        chosen = hidden.flatten(0, -2).index_select(0, trained.places)
        parts = zip(*(torch.split(t, SCORED_TOKENS) for t in (chosen, trained.targets)), strict=True)
        losses = [each_loss(rule(self.logits(here).float()), targets) for here, targets in parts]
        return torch.cat(losses).reshape(1, -1, 1)


def head_loss(
    hidden: torch.Tensor,
    weights: list[torch.Tensor | None],
    targets: torch.Tensor,
    rule: LogitRule,
    chunk_tokens: int | None = None,
) -> torch.Tensor:
    loss: torch.Tensor = HeadLoss.apply(hidden, *weights, targets, rule, chunk_tokens)  # type: ignore[no-untyped-call]
    return loss
