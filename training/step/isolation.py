"""The isolation check: before the first step, measure that documents in a row are isolated and the loss is right.

What isolates documents differs between architectures, and leaks are silent: absolute positions, biases counted from the
start of the row, recurrent state carried across a document's end. So nothing is assumed. The model that will be trained
runs on a row of two documents, on the same row with the first document replaced, and on each document alone; hidden
states must agree. The fastest way to isolate documents that passes is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from cluster.errors import TrainingError
from training.step.batches import MicroBatch, micro_batch_of, one_document_a_row
from training.step.document_attention import CURRENT
from training.step.loss import LogitRule
from training.step.packed_model import Isolation, PackedModel

SHORT_TOKENS = 32  # length of the second document; the first fills the row, so that a sliding window has an effect
LONGEST_ROW = 1024  # tokens in the checked row, unless a window is longer
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")  # configuration keys
HUGE = 1e12  # a logit that only a soft cap can bring below a millionth of its size
FIRST_TOKENS = 3  # of a document, where every kind of leak is largest

Worst = Callable[[Sequence[float]], list[float]]
"""Returns the element-wise maximum over all ranks. Collective."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest accepted relative differences: of hidden states by their norm, and of the loss.

    `leak` is the tightest: both runs compute the same numbers, except where tokens of both documents share an expert.
    """

    leak: float
    alone: float
    loss: float


TOLERANCES = {
    torch.float32: Tolerance(leak=1e-5, alone=1e-3, loss=1e-5),
    torch.bfloat16: Tolerance(leak=1e-3, alone=5e-2, loss=1e-2),
}


@dataclass(frozen=True, kw_only=True)
class IsolationCheck:
    """The result: how documents are isolated and, if not by attention, why not (`why`).

    `leak` is how much a document's hidden states change with the other document, `alone` how much they differ from the
    document alone, `loss` how much the loss computed in the head differs from that of the model's own logits. `rule` is
    None if the loss is not computed in the head. `passes` and `tokens` are the cost of one document per row: forward
    passes, and tokens relative to those of a micro batch.
    """

    isolation: Isolation
    leak: float
    alone: float
    loss: float
    rule: LogitRule | None
    why: str | None
    passes: float
    tokens: float

    def as_record(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {**vars(self), "isolation": self.isolation.value, "rule": self.rule and vars(self.rule)}

    def as_text(self) -> str:
        """Return the result as printed before the first step."""
        found = f"leak between documents {self.leak:.1e}, difference from a document alone {self.alone:.1e}"
        lines = [f"documents    {self.isolation.value}, checked on a row of two: {found}"]
        if self.why is not None:
            lines.append(f"             no faster way works: {self.why}{self.cost()}")
        if self.rule is None:
            lines.append(
                f"head         logits of all tokens: the loss of trained tokens alone differs by {self.loss:.1e}"
            )
        return "\n".join(lines)

    def cost(self) -> str:
        """Return what one document per row costs, as the end of a line; empty for the other ways."""
        if self.isolation is not Isolation.ONE_A_ROW:
            return ""
        return f"; a micro batch takes {self.passes:.1f} forward passes and {self.tokens:.2f} times its tokens"


@torch.no_grad()
def check_isolation(
    model: PackedModel, row_tokens: int, examples: Sequence[MicroBatch], worst: Worst
) -> IsolationCheck:
    """Choose how `model` isolates documents and computes the loss, and set it up that way. Collective.

    The model must be in evaluation mode. Raises TrainingError if no way isolates the documents of a row.
    """
    documents = documents_for(model, row_tokens)
    tolerance = TOLERANCES[next(model.model.parameters()).dtype]
    fixed = model.attention != "auto"
    why = f"train.attention is {model.attention}" if fixed else "its layers do not look up their attention by name"
    for isolation in model.ways():
        found = differences(model, isolation, documents, tolerance, worst)
        if isinstance(found, tuple):
            break
        why = found
    else:
        with_it = f" with train.attention: {model.attention}" if fixed else ""
        raise TrainingError(
            f"{type(model.model).__name__} cannot be trained on packed rows{with_it}: {why}; "
            + ("set train.attention: auto" if fixed else "choose another model")
        )
    rule, loss = check_loss(model, documents[-1], tolerance, worst)
    check_wishes(model, isolation, rule, loss)
    parts = [part for batch in examples for part in one_document_a_row(batch, model.border)]
    return IsolationCheck(
        isolation=isolation,
        leak=found[0],
        alone=found[1],
        loss=loss,
        rule=rule,
        why=None if isolation is Isolation.BY_ATTENTION else why,
        passes=len(parts) / max(1, len(examples)),
        tokens=sum(part.input_ids.numel() for part in parts) / max(1, sum(b.input_ids.numel() for b in examples)),
    )


def check_wishes(model: PackedModel, isolation: Isolation, rule: LogitRule | None, loss: float) -> None:
    """Raise TrainingError if the way that was found leaves no room for what the YAML asks for."""
    name = type(model.model).__name__
    if model.is_compiled and isolation is Isolation.ONE_A_ROW:
        raise TrainingError(
            f"train.compile: layers: {name} takes one document a row; rows differ in length, and each length would be"
            " compiled; set none"
        )
    if rule is None and model.head.chunk_tokens is not None:
        raise TrainingError(
            f"train.loss_chunk_tokens: {name} needs the logits of all tokens, as the loss computed in its head differs"
            f" by {loss:.1e}; leave this key out"
        )


def documents_for(model: PackedModel, row_tokens: int) -> list[torch.Tensor]:
    """Return a long document, another of the same length, and a short one, of random ids from the vocabulary."""
    config = model.model.config.get_text_config()
    windows = [model.border, *(getattr(config, name, None) for name in WINDOWS)]
    longest = max([LONGEST_ROW, *(2 * SHORT_TOKENS + window for window in windows if isinstance(window, int))])
    row_tokens = min(row_tokens, longest)
    short = max(1, min(SHORT_TOKENS, row_tokens // 4, model.border or SHORT_TOKENS))
    short -= 1 - short % 2  # odd, so that a model that computes in blocks reads past the document's end, if it does so
    generator = torch.Generator().manual_seed(0)
    lengths = [row_tokens - short, row_tokens - short, short]
    return [torch.randint(config.vocab_size, (length,), generator=generator) for length in lengths]


def differences(
    model: PackedModel, isolation: Isolation, documents: list[torch.Tensor], tolerance: Tolerance, worst: Worst
) -> tuple[float, float] | str:
    """Return the leak and the difference from documents alone, or why this way is not good enough. Collective."""
    first, other, short = documents
    model.isolate(Isolation.ONE_A_ROW)
    alone = [hidden for document in (first, short) for hidden in of_documents(model, [document])]
    model.isolate(isolation)
    CURRENT.unsupported = None
    packed = of_documents(model, [first, short])
    changed = of_documents(model, [other, short])
    leak = max(median(packed[1][:FIRST_TOKENS], changed[1][:FIRST_TOKENS]), median(packed[1], changed[1]))
    apart = max(of_quarters(found, expected) for found, expected in zip(packed, alone, strict=True))
    leak, apart, unsupported = worst([leak, apart, float(CURRENT.unsupported is not None)])
    if unsupported:
        return CURRENT.unsupported or "on another rank, its attention needs something that is not supported"
    if not leak <= tolerance.leak:
        return f"documents in a row see each other (leak {leak:.1e})"
    if not apart <= tolerance.alone:
        return f"a document in a row differs from the document alone (by {apart:.1e})"
    return leak, apart


def row_of(documents: list[torch.Tensor], isolation: Isolation) -> MicroBatch:
    """Return documents as a micro batch of one row, padded so that one document per row still takes a single pass."""
    tokens = torch.cat(documents)
    room = len(documents) * len(documents[0]) if isolation is Isolation.ONE_A_ROW else len(tokens)
    ids = F.pad(tokens, (0, room - len(tokens)))[None]
    mask = torch.arange(room)[None] < len(tokens)
    return micro_batch_of(ids, mask, [[len(document) for document in documents]], index=0)


def of_documents(model: PackedModel, documents: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the hidden states [tokens, width] of each document in a row. Documents must be sorted, longest first."""
    parts = model.parts(row_of(documents, model.isolation))
    if model.isolation is not Isolation.ONE_A_ROW:
        states = [torch.split(model.hidden(part)[0], part.segments) for part in parts]
        return [document for row in states for document in row[: len(documents)]]
    rows = [row for part in parts for row in model.hidden(part)]
    return [row[: len(document)] for row, document in zip(rows, documents, strict=True)]


def median(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the median over tokens of the difference relative to the norm; NaN counts as infinite.

    The median, not the maximum: rounding may route a token that is undecided between two experts to the other one.
    """
    difference = (found.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1).clamp_min(1e-30)
    return float(difference.nan_to_num(nan=math.inf).median())


def of_quarters(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest median over a document's quarters: the effect of a window shows only in the last ones."""
    pairs = zip(found.chunk(4), expected.chunk(4), strict=True)
    return max(median(quarter, other) for quarter, other in pairs)


def check_loss(
    model: PackedModel, document: torch.Tensor, tolerance: Tolerance, worst: Worst
) -> tuple[LogitRule | None, float]:
    """Find the model's logit rule and compare the loss computed in the head with that of its own logits. Collective.

    Returns the rule, which is set in `model`, and the relative difference. The rule is None if the loss in the head is
    not the same: then the loss is computed from the logits of all tokens.
    """
    (batch,) = model.parts(row_of([document], model.isolation))
    model.rule = None
    expected = float(model.loss(batch).summed)
    model.rule = logit_rule(model, batch)
    difference = math.inf if model.rule is None else abs(float(model.loss(batch).summed) / expected - 1)
    (difference,) = worst([difference])
    if not difference <= tolerance.loss:
        model.rule = None
    return model.rule, difference


def logit_rule(model: PackedModel, batch: MicroBatch) -> LogitRule | None:
    """Return what the model does to its head's output, found by making the head return known values; None if unknown.

    The known values are 1, HUGE and a ramp. With y = cap tanh(scale x / cap), HUGE comes out as the cap, and 1 gives
    the scale by inverting tanh; without a cap, 1 comes out as the scale. The ramp then checks the formula.
    """
    vocab = model.model.config.get_text_config().vocab_size
    known = torch.linspace(-20, 20, vocab, device=model.device)
    known[:2] = torch.tensor([1.0, HUGE])
    with model.head.acting(lambda hidden: known.expand(*hidden.shape[:-1], vocab)):
        logits = model.forward(batch).logits
    model.head.take()
    if logits.shape[-1] != vocab:
        return None
    seen = logits.float().flatten(0, -2)[0]
    of_one, of_huge = seen[:2].tolist()
    cap = of_huge if of_huge < HUGE / 1e6 else None
    scale = of_one if cap is None else cap * math.atanh(of_one / cap)
    rule = LogitRule(scale=1.0 if abs(scale - 1) < 1e-6 else scale, cap=cap)
    return rule if torch.allclose(rule(known), seen, rtol=1e-2, atol=1e-2) else None
