"""Before the first step a model proves that documents of a row do not see each other, and that its loss is true.

What keeps documents apart differs between architectures, and what fails does so in silence: learned positions, biases
that count from the row's beginning, states that run on. So nothing is believed: the very model that will be trained is
called with a row of two documents and with each alone.
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

SHORT_TOKENS = 32  # of the second document; the first fills the row, so that a sliding window is noticed
LONGEST_ROW = 1024  # unless a window is longer
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")  # of configurations
HUGE = 1e12  # a logit that only a soft cap makes smaller than a millionth of it
FIRST_TOKENS = 3  # of a document, where everything that leaks shows

Worst = Callable[[Sequence[float]], list[float]]
"""Returns the largest value of all ranks at each place."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest differences of hidden states relative to their norm, and of the loss relative to it.

    `leak` is small, since the same numbers are computed twice but for experts that another document's tokens share.
    """

    leak: float
    alone: float
    loss: float


TOLERANCES = {
    torch.float32: Tolerance(leak=1e-5, alone=1e-3, loss=1e-5),
    torch.bfloat16: Tolerance(leak=1e-3, alone=5e-2, loss=1e-2),
}


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was found: how documents are kept apart, and why not by attention where that is so.

    `leak` is how much a document changes when the other one does, `alone` how much when it stands alone, `loss` how
    much the loss taken in the head differs from that of the model's own logits; `rule` is None if that is not used.
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
        """Return the proof as JSON values."""
        return {**vars(self), "isolation": self.isolation.value, "rule": self.rule and vars(self.rule)}

    def as_text(self) -> str:
        """Return the lines that a person reads before the first step."""
        found = f"a change of one changes the other by {self.leak:.1e}, alone it differs by {self.alone:.1e}"
        lines = [f"documents    {self.isolation.value}, proved on a row of two: {found}"]
        if self.why is not None:
            lines.append(f"             the faster way is not taken: {self.why}{self.cost()}")
        if self.rule is None:
            lines.append(
                f"head         logits of all tokens: the loss on trained ones alone differs by {self.loss:.1e}"
            )
        return "\n".join(lines)

    def cost(self) -> str:
        if self.isolation is not Isolation.ONE_A_ROW:
            return ""
        return f"; this costs {self.passes:.1f} forward passes and {self.tokens:.2f} times the tokens of a micro batch"


@torch.no_grad()
def prove(model: PackedModel, row_tokens: int, examples: Sequence[MicroBatch], worst: Worst) -> Proof:
    """Choose how documents are kept apart and the loss is taken, and leave `model` so. Collective.

    The model must be in evaluation mode. Raises TrainingError if a document is not what it is alone in any way.
    """
    documents = documents_for(model, row_tokens)
    tolerance = TOLERANCES[next(model.model.parameters()).dtype]
    why = "its layers do not ask for attention by name"
    for isolation in model.ways():
        found = differences(model, isolation, documents, tolerance, worst)
        if isinstance(found, tuple):
            break
        why = found
    else:
        raise TrainingError(f"{type(model.model).__name__} cannot be trained on packed rows: {why}")
    rule, loss = prove_loss(model, documents[-1], tolerance, worst)
    parts = [part for batch in examples for part in one_document_a_row(batch, model.border)]
    return Proof(
        isolation=isolation,
        leak=found[0],
        alone=found[1],
        loss=loss,
        rule=rule,
        why=None if isolation is Isolation.BY_ATTENTION else why,
        passes=len(parts) / max(1, len(examples)),
        tokens=sum(part.input_ids.numel() for part in parts) / max(1, sum(b.input_ids.numel() for b in examples)),
    )


def documents_for(model: PackedModel, row_tokens: int) -> list[torch.Tensor]:
    """Return a long document, another one of its length, and a short one, of ids drawn from the vocabulary."""
    config = model.model.config.get_text_config()
    windows = [model.border, *(getattr(config, name, None) for name in WINDOWS)]
    longest = max([LONGEST_ROW, *(2 * SHORT_TOKENS + window for window in windows if isinstance(window, int))])
    row_tokens = min(row_tokens, longest)
    short = max(1, min(SHORT_TOKENS, row_tokens // 4, model.border or SHORT_TOKENS))
    short -= 1 - short % 2  # odd: a model that works in blocks sees what stands behind the document, if it looks there
    generator = torch.Generator().manual_seed(0)
    lengths = [row_tokens - short, row_tokens - short, short]
    return [torch.randint(config.vocab_size, (length,), generator=generator) for length in lengths]


def differences(
    model: PackedModel, isolation: Isolation, documents: list[torch.Tensor], tolerance: Tolerance, worst: Worst
) -> tuple[float, float] | str:
    """Return by how much documents leak and differ from themselves alone, or why this way is not good enough."""
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
        return CURRENT.unsupported or "another rank's layers ask for more than is done here"
    if not leak <= tolerance.leak:
        return f"documents of a row see each other (they change by {leak:.1e})"
    if not apart <= tolerance.alone:
        return f"a document in a row is not what it is alone (it differs by {apart:.1e})"
    return leak, apart


def row_of(documents: list[torch.Tensor], isolation: Isolation) -> MicroBatch:
    """Return documents as a micro batch of one row; in rows of their own, there is room for all in one pass."""
    tokens = torch.cat(documents)
    room = len(documents) * len(documents[0]) if isolation is Isolation.ONE_A_ROW else len(tokens)
    ids = F.pad(tokens, (0, room - len(tokens)))[None]
    mask = torch.arange(room)[None] < len(tokens)
    return micro_batch_of(ids, mask, [[len(document) for document in documents]], index=0)


def of_documents(model: PackedModel, documents: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the hidden states [tokens, width] of each document of a row; no document is shorter than the next one."""
    parts = model.parts(row_of(documents, model.isolation))
    if model.isolation is not Isolation.ONE_A_ROW:
        states = [torch.split(model.hidden(part)[0], part.segments) for part in parts]
        return [document for row in states for document in row[: len(documents)]]
    rows = [row for part in parts for row in model.hidden(part)]
    return [row[: len(document)] for row, document in zip(rows, documents, strict=True)]


def median(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the median over tokens of the difference relative to the norm; not a number counts as infinite.

    Not the largest: a token at the border between two experts may go to the other one.
    """
    difference = (found.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1).clamp_min(1e-30)
    return float(difference.nan_to_num(nan=math.inf).median())


def of_quarters(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest median of a document's quarters: a window shows in the last one."""
    pairs = zip(found.chunk(4), expected.chunk(4), strict=True)
    return max(median(quarter, other) for quarter, other in pairs)


def prove_loss(
    model: PackedModel, document: torch.Tensor, tolerance: Tolerance, worst: Worst
) -> tuple[LogitRule | None, float]:
    """Find what the model does to its logits, and whether the loss taken in the head is that of the model's own.

    Return the rule, which `model` then has, or None where the logits of all tokens are the only way.
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
    """Find what stands between the head and the logits by letting the head return known numbers; None: not found."""
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
