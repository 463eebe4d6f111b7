"""Which rank's file holds which elements of a parameter, as short as a commit file can say it.

A list of every span would be as long as parameters x ranks: 20 MB for a thousand ranks. But ZeRO cuts a parameter into
equal spans, rank after rank, up to a shorter first and last one; so a commit file lists runs of equal spans, two or
three of a parameter whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.errors import CheckpointError
from training.checkpoints.shard_files import Span, rank_file_name

Run = tuple[int, int, int, int]  # first rank, first element, elements of each span, number of spans
RankSpans = Mapping[str, tuple[int, int]]  # by parameter: first element, elements


def rank_spans(kind: str, spans: Sequence[Span]) -> dict[str, tuple[int, int]]:
    """Return what a rank's file of one kind holds, by parameter."""
    return {span.key.removeprefix(f"{kind}."): (span.start, span.numel) for span in spans}


def runs_of(ranks: Sequence[RankSpans]) -> dict[str, list[list[int]]]:
    """Return the runs of equal spans of each parameter, from what each rank holds, in the order of the ranks."""
    runs: dict[str, list[list[int]]] = {}
    for rank, spans in enumerate(ranks):
        for name, (start, numel) in spans.items():
            if numel == 0:
                continue
            found = runs.setdefault(name, [])
            if found:
                first_rank, first, length, count = found[-1]
                follows = rank == first_rank + count and start == first + length * count
                if follows and numel == length:
                    found[-1][3] += 1
                    continue
            found.append([rank, start, numel, 1])
    return runs


class RankIndex:
    """Finds the files of some elements. `runs` are those of a commit file, `world_size` the ranks that wrote it."""

    def __init__(self, runs: Mapping[str, Sequence[Sequence[int]]], world_size: int) -> None:
        self.runs, self.world_size = runs, world_size

    def files(self, key: str, start: int, stop: int) -> list[str]:
        """Return the names of the files that hold elements start..stop of a tensor, 'KIND.PARAMETER'."""
        kind, _, name = key.partition(".")
        if name not in self.runs:
            raise CheckpointError(f"{key}: the commit file lists no span of it; the checkpoint is of another model")
        ranks: list[int] = []
        for first_rank, first, length, count in self.runs[name]:
            low = max(0, (start - first) // length)
            high = min(count, -((first - stop) // length))
            ranks += range(first_rank + low, first_rank + high)
        return [rank_file_name(kind, rank, self.world_size) for rank in sorted(set(ranks))] if start < stop else []
