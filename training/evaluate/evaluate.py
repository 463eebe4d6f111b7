"""Compare the base and the tuned model on held-out rows: loss, perplexity, bits per byte, stop rate, answers."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from cluster.errors import DataError
from data_prep.shards import Manifest, ShardReader
from training.config import EvaluateConfig
from training.generate.answers import Answer, answer
from training.generate.loading import best_device, load_export, load_model
from training.generate.sampling import Sampling
from training.models.source import ModelOrigin
from training.step.batches import micro_batch
from training.step.isolation import check_isolation
from training.step.packed_model import PackedModel

log = logging.getLogger(__name__)

TEXT_PROMPT_TOKENS = 32  # length of the prompt taken from a document that is not a conversation


@dataclass(frozen=True, kw_only=True)
class GeneratedAnswer:
    """A held-out prompt and its continuation in the document, as ids."""

    prompt: list[int]
    reference: list[int]


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a model predicts the held-out tokens that training would count.

    `loss` is in nats per token; `bits_per_byte` is per byte of these tokens' text, which compares across tokenizers;
    `stop_rate` is the share of answers that the model ended itself, None if the data has no conversations.
    """

    path: str
    loss: float
    perplexity: float
    bits_per_byte: float
    stop_rate: float | None


def evaluate(
    origin: ModelOrigin, export: Path, shards: Path, manifest: Manifest, config: EvaluateConfig, seed: int
) -> dict[str, Any]:
    """Return the evaluation of the base and the tuned model as the JSON values of evaluation.json."""
    if manifest.rows("validation") == 0:
        raise DataError("no held-out rows: raise data.validation_fraction and run `shardline prepare RUN.yaml` again")
    reader = ShardReader(shards, manifest, "validation")
    rows = list(range(min(len(reader), config.rows or len(reader))))
    samples = list(islice(held_out_samples(reader, manifest.conversational), config.samples))
    tokenizer, sampling = origin.tokenizer, Sampling(tokens=config.sample_tokens)
    tuned_model, _ = load_export(export)
    models = {"base": base_model(origin, seed), "tuned": tuned_model}
    paths = {"base": str(origin.folder or "new, untrained"), "tuned": str(export)}
    scores: dict[str, Any] = {}
    answers: dict[str, list[Answer]] = {}
    for name, model in models.items():
        answers[name] = [answer(model, tokenizer, s.prompt, sampling) for s in samples]
        loss, bits_per_byte = held_out_loss(model, tokenizer, reader, rows)
        score = Score(
            path=paths[name],
            loss=loss,
            perplexity=math.exp(min(loss, 700.0)),
            bits_per_byte=bits_per_byte,
            stop_rate=stop_rate(answers[name]) if manifest.conversational else None,
        )
        scores[name] = asdict(score)
    return {
        "split": "validation",
        "rows": len(rows),
        "trained_tokens": reader.trained_tokens(rows),
        "models": scores,
        "samples": [
            sample_record(tokenizer, sample, base, tuned)
            for sample, base, tuned in zip(samples, answers["base"], answers["tuned"], strict=True)
        ],
    }


def stop_rate(answers: list[Answer]) -> float | None:
    return sum(answer.stopped for answer in answers) / len(answers) if answers else None


def base_model(origin: ModelOrigin, seed: int) -> Any:
    """Return the model that the run started from."""
    if origin.folder is not None:
        return origin.enlarge(load_model(origin.folder), seed)
    model = AutoModelForCausalLM.from_config(deepcopy(origin.config))
    weights = origin.first_weights(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.part(name, tuple(parameter.shape), 0, parameter.numel()).reshape(parameter.shape))
    return model.to(best_device()).eval()


@torch.inference_mode()
def held_out_loss(model: Any, tokenizer: Any, reader: ShardReader, rows: list[int]) -> tuple[float, float]:
    """Return the loss in nats per trained token, and in bits per byte of these tokens' text.

    The model is called as in training, with the documents of a row isolated.
    """
    packed = PackedModel(model, model, model.device)
    check_isolation(packed, reader.row_tokens, [micro_batch(reader.rows(rows[:1]), index=0)], list)
    nats, tokens, size = 0.0, 0, 0
    for row in rows:
        arrays = reader.rows([row])
        batch = micro_batch(arrays, index=0)
        nats += sum(float(packed.loss(part).summed) for part in packed.parts(batch))
        tokens += int(arrays.loss_mask.sum())
        text = tokenizer.decode(arrays.input_ids[arrays.loss_mask].tolist(), skip_special_tokens=True)
        size += len(text.encode())
    return nats / tokens, nats / math.log(2) / max(1, size)


def held_out_samples(reader: ShardReader, conversational: bool) -> Iterator[GeneratedAnswer]:
    """Yield a sample from the first document of each row: its first span of trained tokens, and what precedes it."""
    for row in range(len(reader)):
        arrays = reader.rows([row])
        piece, length = reader.pieces(row)[0], int(arrays.piece_tokens[0][0])
        ids, mask = arrays.input_ids[0, :length].tolist(), arrays.loss_mask[0, :length].tolist()
        if piece.start > 0:  # a later part of a long document
            continue
        first = mask.index(True) if conversational and True in mask else TEXT_PROMPT_TOKENS
        stop = next((place for place in range(first, length) if not mask[place]), length)
        if 0 < first < stop:
            yield GeneratedAnswer(prompt=ids[:first], reference=ids[first:stop])


def sample_record(tokenizer: Any, sample: GeneratedAnswer, base: Answer, tuned: Answer) -> dict[str, Any]:
    return {
        "prompt": tokenizer.decode(sample.prompt, skip_special_tokens=True).strip(),
        "reference": tokenizer.decode(sample.reference, skip_special_tokens=True).strip(),
        "base": base.text,
        "tuned": tuned.text,
        "base_stopped": base.stopped,
        "tuned_stopped": tuned.stopped,
    }


def as_text(evaluation: dict[str, Any]) -> str:
    """Return the comparison as a table for the terminal."""
    lines = [f"{evaluation['rows']} held-out rows, {evaluation['trained_tokens']:,} tokens scored"]
    lines.append(f"{'':8}{'loss':>10}{'perplexity':>12}{'bits/byte':>11}{'stops':>8}")
    for name, score in evaluation["models"].items():
        stops = "" if score["stop_rate"] is None else f"{score['stop_rate']:.0%}"
        lines.append(
            f"{name:8}{score['loss']:10.4f}{score['perplexity']:12.2f}{score['bits_per_byte']:11.4f}{stops:>8}"
        )
    return "\n".join(lines)
