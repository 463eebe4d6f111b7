"""How equal the ranks' shares of a step are: told by `shardline check` and at the start of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

import numpy as np

from cluster.wording import count_of
from data_prep.shards import Manifest, ShardReader
from data_prep.shards.attention_work import tells_work
from training.order import BY_WORK, order_of
from training.plan import Plan
from training.step.batches import Batches
from training.step.deal import Deal, Integers, in_turn

SAMPLED_ROWS, SAMPLED_STEPS = 4096, 16


def batches_of(shards: Path, manifest: Manifest, plan: Plan) -> Batches:
    """Return the batches of a plan's first rank."""
    return Batches(
        reader=ShardReader(shards, manifest, "train"),
        order=order_of(manifest, plan.global_batch_rows, plan.seed),
        rank=0,
        world_size=plan.world_size,
        micro_batch_rows=plan.micro_batch_rows,
        deal=plan.deal,
    )


def balance_lines(batches: Batches, total_steps: int) -> Iterator[str]:
    """Yield lines about how much the ranks differ in attention work and trained tokens, from some steps of the run."""
    if batches.world_size == 1 or not tells_work(batches.reader.manifest):
        return
    rows = batches.order.global_batch_rows
    count = max(1, min(total_steps, SAMPLED_STEPS, SAMPLED_ROWS // rows))
    steps = [batches.order.rows_of_step(number * total_steps // count) for number in range(count)]
    work = [batches.reader.attention_work(step) for step in steps]
    trained = [batches.reader.trained_tokens_of(step).astype(np.int64) for step in steps]
    deals = [batches.dealt(step) for step in steps]
    cut = [in_turn(batches.division)] * count
    if batches.deal == BY_WORK:
        instead = f"; in turn it would be {share_of(cut, work)}"
    else:
        instead = ": batches are dealt in turn, as when the run began"
    yield f"balance      the ranks' attention work differs by {share_of(deals, work)}{instead}"
    yield f"             and their trained tokens by {share_of(deals, trained)}, in {count_of(count, 'step')}"


def share_of(deals: Sequence[Deal], values: Sequence[Integers]) -> str:
    """Return by how much ranks differ on average and at most over some steps, as text."""
    found = [difference(deal.sums(of_step)) for deal, of_step in zip(deals, values, strict=True)]
    return f"{mean(found):.1%} (at most {max(found):.1%})"


def difference(sums: Integers) -> float:
    """Return how much less the rank with the least has than the one with the most, as a share of the latter.

    `sums` are [ranks, accumulation steps].
    """
    of_ranks = sums.sum(axis=1)
    return float(1 - of_ranks.min() / of_ranks.max()) if of_ranks.max() else 0.0
