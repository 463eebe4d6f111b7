"""Say why a run that is valid would learn little or nothing."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.wording import count_of, is_or_are
from data_prep.shards import Manifest
from training.advice.learning_rates import NAMES, Method, usual_learning_rates
from training.config import ModelConfig, TrainConfig
from training.plan import Plan, empty_places_text

FEW_STEPS = 100
FEW_HELD_OUT = 8  # rows
MUCH_IDLE = 0.25  # of the ranks' time
MANY_EPOCHS: dict[Method, float] = {"new": 20, "full": 12, "lora": 12}
# Muennighoff et al. 2023 (arXiv 2305.16264): new models gain from 4 epochs as from new text, and nothing from 40


def method_of(model: ModelConfig, train: TrainConfig) -> Method:
    """Return how a run trains its model."""
    if model.new is not None:
        return "new"
    return "full" if train.lora is None else "lora"


def plan_warnings(plan: Plan, manifest: Manifest, method: Method) -> list[str]:
    """Return one sentence for each reason why a run is unlikely to learn; none if there is no such reason."""
    return [
        *length_warnings(plan, method),
        *division_warnings(plan),
        *rate_warnings(plan, method),
        *held_out_warnings(plan, manifest),
    ]


def length_warnings(plan: Plan, method: Method) -> Iterator[str]:
    """Yield what is wrong with the number of steps, the warm-up, the batch and the epochs."""
    batch, epochs = plan.global_batch_rows, plan.total_steps * plan.global_batch_rows / plan.rows
    if batch > plan.rows:
        yield (
            f"train.global_batch_rows: {batch} is more than the {count_of(plan.rows, 'training row')}, so each step"
            " repeats rows; use a smaller batch or more data"
        )
    if plan.total_steps < FEW_STEPS:
        yield (
            f"train: {count_of(plan.total_steps, 'step')} {is_or_are(plan.total_steps)} few to learn from; aim at"
            f" {2 * FEW_STEPS} or more: raise"
            " train.epochs or train.steps, or lower train.global_batch_rows"
        )
    if 2 * plan.warmup_steps > plan.total_steps:
        whole = "all" if plan.warmup_steps >= plan.total_steps else "more than half"
        yield (
            f"train.warmup_fraction: the warm-up of {count_of(plan.warmup_steps, 'step')} is {whole} of the run's"
            f" {plan.total_steps:,}; 0.03 to 0.1 is usual"
        )
    if epochs > MANY_EPOCHS[method]:
        yield (
            f"train: each row is seen {epochs:.0f} times; more than {MANY_EPOCHS[method]:.0f} epochs mostly memorize:"
            " watch the held-out loss, or train on more data"
        )


def division_warnings(plan: Plan) -> Iterator[str]:
    """Yield how much time is lost if the ranks do not fill the global batch's places."""
    division = plan.division
    if division.idle_share <= MUCH_IDLE:
        return
    faster = division.faster()
    less = f" ({faster.idle_share:.0%} with micro_batch_rows {faster.micro_batch_rows})" if faster else ""
    yield (
        f"train.global_batch_rows: {count_of(division.rows, 'row')} for {count_of(division.ranks, 'rank')} x"
        f" {division.micro_batch_rows} micro_batch_rows: {division.idle_share:.0%} of the ranks' time is lost{less};"
        f" {empty_places_text(division)}, which is another run"
    )


def rate_warnings(plan: Plan, method: Method) -> Iterator[str]:
    """Yield what is wrong with the learning rate."""
    rates, rate = usual_learning_rates(method, plan.parameters), plan.config.learning_rate
    if not rates.low <= rate <= rates.high:
        risk = "too low to learn much" if rate < rates.low else "so high that the loss may diverge"
        yield (
            f"train.learning_rate: {rate:g} is probably {risk}: for {NAMES[method]} of {plan.parameters:,} parameters,"
            f" {rates.low:.1g} to {rates.high:.1g} is the usual range, {rates.usual:.1g} a good start"
        )


def held_out_warnings(plan: Plan, manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with the held-out rows."""
    rows = manifest.rows("validation")
    if plan.config.validation_rows == 0 or rows == 0:
        reason = "train.validation_rows is 0" if rows else "no rows are held out"
        yield (
            f"validation: {reason}, so nothing will show when the model only memorizes; set data.validation_fraction"
            " and train.validation_rows above 0"
        )
    elif min(rows, plan.config.validation_rows) < FEW_HELD_OUT:
        few = min(rows, plan.config.validation_rows)
        which = "data.validation_fraction" if rows < FEW_HELD_OUT else "train.validation_rows"
        yield f"validation: {count_of(few, 'held-out row')} {'says' if few == 1 else 'say'} little; raise {which}"
