"""Why the losses of several runs should not be compared as they stand: data, and what `evaluate` measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from training.reporting.page.differences import COUNTED, Compared, counts_text
from training.reporting.status import command, is_stale

HIGHEST = "float32"  # precision


def warnings(runs: Sequence[Compared]) -> list[str]:
    """Return why the losses of these runs should not be compared as they stand."""
    return [*data_warnings(runs), *evaluation_warnings([run for run in runs if run.evaluation is not None])]


def data_warnings(runs: Sequence[Compared]) -> Iterator[str]:
    known = [run.manifest for run in runs if run.manifest is not None]
    if len(known) < len(runs):
        lacking = ", ".join(run.name for run in runs if run.manifest is None)
        yield f"Without prepared data, so its rows cannot be compared: {lacking}."
    if len({manifest.tokenizer_digest for manifest in known}) > 1:
        yield "The tokenizers differ: a loss per token means something else in each run; see bits per byte."
    if has_other_rows(runs):
        yield "The held-out rows differ, and with them the held-out losses, whatever the models."


def has_other_rows(runs: Sequence[Compared]) -> bool:
    """Return whether the prepared data of runs is known to hold different held-out rows."""
    known = [run.manifest for run in runs if run.manifest is not None]
    return len({tuple(shard.sha256 for shard in manifest.splits["validation"]) for manifest in known}) > 1


def evaluation_warnings(runs: Sequence[Compared]) -> Iterator[str]:
    """Yield what keeps the figures of `evaluate` from being compared, and what to type."""
    for run in runs:
        if is_stale(evaluation_of(run), run.paths.export):
            yield (
                f"The evaluation of {run.name} is of an earlier export than the one that is there now; for the new one:"
                f" {command('evaluate', run.paths)}"
            )
    if len(runs) < 2:
        return
    if not has_other_rows(runs) and (differing := differing_counts(runs)):
        yield (
            f"The evaluations are of different held-out rows ({listed(runs, differing)}), and so are their losses and"
            f" bits per byte, whatever the models; to compare them: {same_rows(runs)}"
        )
    if len({evaluation_of(run)["dtype"] for run in runs if "dtype" in evaluation_of(run)}) > 1:
        told = ", ".join(f"{run.name} {evaluation_of(run).get('dtype', 'unknown')}" for run in runs)
        yield f"The evaluations were computed in different precisions ({told}); to compare them: {same_dtype(runs)}"


def evaluation_of(run: Compared) -> dict[str, Any]:
    return dict(run.evaluation or {})


def differing_counts(runs: Sequence[Compared]) -> list[str]:
    """Return which counts are not the same in all evaluations; one that does not tell a count has any."""
    values = {key: {found[key] for run in runs if key in (found := evaluation_of(run))} for key in COUNTED}
    return [key for key in COUNTED if len(values[key]) > 1]


def listed(runs: Sequence[Compared], keys: Sequence[str]) -> str:
    return "; ".join(f"{run.name}: {counts_text(evaluation_of(run), keys)}" for run in runs)


def same_rows(runs: Sequence[Compared]) -> str:
    """Return the commands that score as many rows of each run as most were of any.

    Evaluations of as many rows that hold other documents or tokens were made on other data, one of them earlier: which
    one is not known, so all are made again.
    """
    most = max(evaluation_of(run)["rows"] for run in runs)
    fewer = [run for run in runs if evaluation_of(run)["rows"] < most]
    return "; ".join(f"{command('evaluate', run.paths)} -o evaluate.rows={most}" for run in fewer or runs)


def same_dtype(runs: Sequence[Compared]) -> str:
    """Return the commands that export and score in fp32, which every machine computes as it stands."""
    return "; ".join(
        f"{command('export', run.paths)} -o export.dtype=fp32; {command('evaluate', run.paths)}"
        for run in runs
        if evaluation_of(run).get("dtype") != HIGHEST
    )
