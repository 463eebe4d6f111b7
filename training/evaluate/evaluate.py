"""Compare the base and the tuned model on held-out rows: loss by document, replies, labels.

evaluation.json holds, beside what earlier versions wrote (`split`, `rows`, `trained_tokens`, `models`, `samples`):

- `export`: `path` and `digest` of the export that was scored (`shardline status` and the report compare it); `ranks`:
  over how many ranks, and `dtype`: in which precision both models were scored.
- `documents`: how many were scored. `models.base` and `models.tuned` hold `path`; over all trained tokens `loss`,
  `perplexity`, `bits_per_byte`; `document_loss` (the mean of the documents' losses), `stop_rate` (null for texts),
  `replies` (reply_figures: `replies`, `stop_rate`, `tokens`, `reference_tokens`, `empty_share`, `repeated_share`; for
  conversations also nearness: `exact_match`, `chrf`, `rouge_l`; {} without samples), `classification` (`accuracy`,
  `macro_f1`; null where replies are no labels) and `memorised` (how many replies repeat 50 tokens of the training
  split).
- `difference`: tuned minus base, by document: `loss`, `low`, `high` (95% of a paired bootstrap, null with fewer than 6
  documents), `documents`, `improved`, `unchanged`, `direction` ("lower", "higher", "no clear difference", "too few
  documents") and `text`, all of it in words.
- `classification`: null, or `documents`, `labels` (text: count) and `majority` (`label`, `accuracy`, `macro_f1`).
- each of `samples`: `prompt`, `reference`, `base`, `tuned`, `base_stopped`, `tuned_stopped`; `memorised`: the training
  row that the tuned reply repeats, or null; `cut`: whether the reference is longer than evaluate.sample_tokens.
- `verdict`: `kind`, `text`, `best_step` (training.evaluate.verdict), from the run's own losses.
- added by the command: `data` (launch.models.data_probes) and, with --tasks, `tasks`
  (training.evaluate.harness): {task: {metric: {"base", "tuned", "stderr_base", "stderr_tuned"}}}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from cluster.errors import DataError
from cluster.model_files import weights_digest
from cluster.progress import counted
from data_prep.shards import Manifest, ShardReader
from training.config import EvaluateConfig
from training.evaluate.difference import difference
from training.evaluate.held_out_prompts import HeldOutPrompt, held_out_prompts
from training.evaluate.labels import LABEL_TOKENS, LabelTask, choose_labels, figures, find_labels, task_record
from training.evaluate.memorised import memorised_spans, token_ids
from training.evaluate.models import Opened, Scored
from training.evaluate.replies import answer_all, nearness, reply_figures
from training.evaluate.scoring import Scores, merged, score_rows, summary
from training.generate.answers import Answer
from training.models.source import ModelOrigin


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is evaluated, and how."""

    origin: ModelOrigin
    export: Path
    shards: Path
    manifest: Manifest
    config: EvaluateConfig
    seed: int

    def reader(self, split: str = "validation") -> ShardReader:
        return ShardReader(self.shards, self.manifest, split)


@dataclass(frozen=True, kw_only=True)
class Work:
    """The held-out rows, prompts and labels, the same for both models."""

    rows: range
    prompts: list[HeldOutPrompt]
    labels: LabelTask | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one model did with the work."""

    scores: Scores
    answers: list[Answer]
    chosen: list[int] | None
    dtype: str


class Models(Protocol):
    """Where the two models come from; at most one of them is in memory."""

    @property
    def world_size(self) -> int: ...

    def tuned(self) -> AbstractContextManager[Opened]: ...

    def base(self) -> AbstractContextManager[Opened]: ...


def evaluate(request: Request, models: Models) -> dict[str, Any]:
    """Return the evaluation as JSON values. Collective where ranks share the models: each returns the same.

    Raises DataError if there are no held-out rows.
    """
    work = find_work(request)
    tuned = run_work(request, work, "tuned", models.tuned)  # first, as the base is scored in its precision
    base = run_work(request, work, "base", models.base)
    return record(request, work, {"base": base, "tuned": tuned}, models.world_size)


def find_work(request: Request) -> Work:
    """Return what both models are given. Raises DataError if there are no held-out rows."""
    if request.manifest.rows("validation") == 0:
        raise DataError("no held-out rows: raise data.validation_fraction and run `shardline prepare RUN.yaml` again")
    reader, config = request.reader(), request.config
    conversational = request.manifest.conversational
    labelled = held_out_prompts(reader, conversational, config.classified, LABEL_TOKENS) if conversational else []
    return Work(
        rows=range(min(len(reader), config.rows or len(reader))),
        prompts=held_out_prompts(reader, conversational, config.samples, config.sample_tokens),
        labels=find_labels(labelled),
    )


def run_work(request: Request, work: Work, name: str, opening: Callable[[], AbstractContextManager[Opened]]) -> Result:
    """Have one model answer, then score the held-out rows. Collective where ranks share the model."""
    tokenizer, reader = request.origin.tokenizer, request.reader()
    with opening() as (model, to_score), torch.inference_mode():
        dtype = str(model.dtype).removeprefix("torch.")
        tokens = request.config.sample_tokens
        answers = answer_all(model, tokenizer, work.prompts, tokens, f"{name} model answers")
        scored: Scored = to_score()
        mine: Sequence[int | None] = dealt(work.rows, scored)
        rows = counted(mine, [1] * len(mine), f"{name} model is scored", len(mine), "rows")
        own = score_rows(scored.packed, scored.passes, tokenizer, reader, rows)
        chosen = None
        if work.labels is not None:
            chosen = choose_labels(scored.packed, scored.passes, work.labels, f"{name} model chooses labels")
        return Result(scores=merged(scored.gather(own)), answers=answers, chosen=chosen, dtype=dtype)


def dealt(rows: range, scored: Scored) -> list[int | None]:
    """Return this rank's rows; as many on every rank, None where there is none left, as all must call the model."""
    most = -(-len(rows) // scored.world_size)
    places = range(scored.rank, most * scored.world_size, scored.world_size)
    return [rows[place] if place < len(rows) else None for place in places]


def record(request: Request, work: Work, results: dict[str, Result], ranks: int) -> dict[str, Any]:
    """Return the evaluation as JSON values; see the top of this file."""
    paths = {"base": str(request.origin.folder or "new, untrained"), "tuned": str(request.export)}
    reader, tokenizer = request.reader("train"), request.origin.tokenizer
    replies = [token_ids(tokenizer, one.text) for name in results for one in results[name].answers]
    repeated = memorised_spans(reader, replies)
    half = len(work.prompts)
    copied = {"base": repeated[:half], "tuned": repeated[half:]}
    scored = results["tuned"].scores
    change = difference(results["base"].scores, scored, request.seed)
    return {
        "split": "validation",
        "rows": len(work.rows),
        "documents": len(scored),
        "trained_tokens": sum(score.tokens for score in scored.values()),
        "ranks": ranks,
        "dtype": results["tuned"].dtype,
        "export": {"path": str(request.export), "digest": weights_digest(request.export)},
        "models": {
            name: {
                "path": paths[name],
                **model_record(request, work, results[name]),
                "memorised": sum(row is not None for row in copied[name]),
            }
            for name in results
        },
        "difference": {**asdict(change), "text": change.as_text()},
        "classification": task_record(work.labels, tokenizer) if work.labels else None,
        "samples": [
            {
                **sample_record(tokenizer, prompt, results["base"].answers[n], results["tuned"].answers[n]),
                "memorised": copied["tuned"][n],
                "cut": len(prompt.reference) > request.config.sample_tokens,
            }
            for n, prompt in enumerate(work.prompts)
        ],
    }


def model_record(request: Request, work: Work, result: Result) -> dict[str, Any]:
    """Return the figures of one model."""
    conversational, tokenizer = request.manifest.conversational, request.origin.tokenizer
    replies = reply_figures(tokenizer, result.answers, work.prompts)
    if conversational:
        references = [text_of(tokenizer, prompt.reference) for prompt in work.prompts]
        replies |= nearness([one.text for one in result.answers], references)
    return {
        **summary(result.scores),
        "stop_rate": replies.get("stop_rate") if conversational else None,
        "replies": replies,
        "classification": figures(result.chosen, work.labels.truth) if work.labels and result.chosen else None,
    }


def text_of(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def sample_record(tokenizer: Any, sample: HeldOutPrompt, base: Answer, tuned: Answer) -> dict[str, Any]:
    return {
        "prompt": text_of(tokenizer, sample.prompt),
        "reference": text_of(tokenizer, sample.reference),
        "base": base.text,
        "tuned": tuned.text,
        "base_stopped": base.stopped,
        "tuned_stopped": tuned.stopped,
    }
