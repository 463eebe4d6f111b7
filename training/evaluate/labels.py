"""Classification: where the references are few short labels, let the model choose one, and compare the choices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cluster.progress import counted
from training.evaluate.held_out_prompts import HeldOutPrompt
from training.evaluate.scoring import Passes, segment_losses
from training.step.batches import micro_batch_of
from training.step.packed_model import PackedModel

FEWEST_DOCUMENTS = 20  # fewer pairs do not tell that their replies are labels
MOST_LABELS = 20
LABEL_TOKENS = 8  # the longest label, with its end-of-turn token
DOCUMENTS_PER_LABEL = 4  # on average at least: replies that seldom recur are no labels

Label = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LabelTask:
    """Held-out pairs whose replies are labels: the ids of each label, and the prompts with the label that is right."""

    labels: list[Label]
    prompts: list[HeldOutPrompt]

    @property
    def truth(self) -> list[int]:
        return [self.labels.index(tuple(prompt.reference)) for prompt in self.prompts]


def find_labels(prompts: Sequence[HeldOutPrompt]) -> LabelTask | None:
    """Return the task if the held-out pairs are a classification, else None."""
    counts = Counter(tuple(prompt.reference) for prompt in prompts)
    is_task = (
        len(prompts) >= FEWEST_DOCUMENTS
        and all(prompt.is_single for prompt in prompts)
        and 2 <= len(counts) <= min(MOST_LABELS, len(prompts) // DOCUMENTS_PER_LABEL)
        and max(map(len, counts)) <= LABEL_TOKENS
    )
    return LabelTask(labels=sorted(counts), prompts=list(prompts)) if is_task else None


def choose_labels(packed: PackedModel, passes: Passes, task: LabelTask, what: str) -> list[int]:
    """Return the number of the label that the model finds likeliest after each prompt, its end-of-turn token included.

    Each label is scored as a continuation of the prompt, in a document of its own, as the model was trained.
    """
    return [
        likeliest(packed, passes, prompt.prompt, task.labels)
        for prompt in counted(task.prompts, [1] * len(task.prompts), what, len(task.prompts), "prompts")
    ]


def likeliest(packed: PackedModel, passes: Passes, prompt: list[int], labels: Sequence[Label]) -> int:
    """Return the number of the label with the lowest loss after a prompt."""
    width = len(prompt) + max(map(len, labels))
    losses = []
    for label in labels:  # one at a time: a batch of all would need the memory of many rows
        length = len(prompt) + len(label)
        ids = torch.zeros((1, width), dtype=torch.int64)
        ids[0, :length] = torch.tensor([*prompt, *label])
        mask = torch.zeros((1, width), dtype=torch.bool)
        mask[0, len(prompt) : length] = True
        batch = micro_batch_of(ids, mask, [[length]], index=0)
        losses.append(segment_losses(packed, batch, passes(batch))[0])
    return losses.index(min(losses))


def figures(chosen: Sequence[int], truth: Sequence[int]) -> dict[str, float]:
    """Return accuracy and macro F1, the mean of F1 over the labels that occur."""
    right = sum(choice == label for choice, label in zip(chosen, truth, strict=True))
    by_label = []
    for label in sorted(set(truth)):
        hits = sum(choice == label == real for choice, real in zip(chosen, truth, strict=True))
        by_label.append(2 * hits / (sum(c == label for c in chosen) + sum(t == label for t in truth)))
    return {"accuracy": right / len(truth), "macro_f1": sum(by_label) / len(by_label)}


def task_record(task: LabelTask, tokenizer: Any) -> dict[str, Any]:
    """Return the task as JSON values, with what always choosing the commonest label would give."""
    counts = Counter(task.truth)
    commonest = max(counts, key=lambda label: counts[label])
    texts = [tokenizer.decode(label, skip_special_tokens=True).strip() for label in task.labels]
    return {
        "documents": len(task.prompts),
        "labels": {texts[label]: counts[label] for label in sorted(counts)},
        "majority": {"label": texts[commonest], **figures([commonest] * len(task.truth), task.truth)},
    }
