"""The held-out loss of exported folders: the same rows, scored as `shardline evaluate` scores them."""

from __future__ import annotations

from pathlib import Path

import torch

from cluster.progress import counted
from data_prep.shards import ShardReader
from training.evaluate.models import LocalModels
from training.evaluate.scoring import score_rows, summary
from training.models.source import ModelOrigin


def held_out_loss(origin: ModelOrigin, folder: Path, reader: ShardReader, rows: range, what: str) -> float:
    """Return the loss, in nats per trained token, of an exported model on these rows; `what` names it to the user."""
    with LocalModels(origin, folder, reader, seed=0).tuned() as (_, to_score), torch.inference_mode():
        scored = to_score()
        shown = counted(rows, [1] * len(rows), f"{what} is scored", len(rows), "rows")
        return summary(score_rows(scored.packed, scored.passes, origin.tokenizer, reader, shown))["loss"]
