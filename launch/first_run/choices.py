"""Choose the numbers of a first run from the size of the data and the model; each comes with its reason.

Sources of these rules: some hundreds of steps and one to three epochs are what published recipes take for instruction
data (Alpaca: 52,000 rows, 3 epochs, batch 128; Zephyr: 200,000, 1 epoch, batch 128; LIMA: 1,000, 15 epochs, batch 32,
arXiv 2305.11206). More than four epochs of running text bring a new model less and less (Muennighoff et al. 2023,
arXiv 2305.16264). LoRA loses more than full fine-tuning with large batches (Schulman et al. 2025). A new model has
about 20 tokens a parameter if computing is what is scarce (Hoffmann et al. 2022, arXiv 2203.15556); here data are, so
four epochs' worth of them count. Learning rates: training/advice/learning_rates.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.wording import count_of
from data_prep.pack.packing import best_fit
from launch.first_run.facts import DataFacts, Machine, ModelFacts
from training.advice.learning_rates import Method, usual_learning_rates

STEPS = 200  # at least
LARGE_STEPS = 1000  # at least, with batches of more than 32 rows
MOST_EPOCHS = {"new": 10, "full": 10, "lora": 10}
TEXT_EPOCHS = 4
BATCHES = (128, 64, 32, 16, 8, 4)
LORA_BATCH = 32
HELD_OUT = 60  # documents or rows
LONGEST = {"text": 2048, "other": 8192}
UNKNOWN_LENGTH = 1024
UNKNOWN_ROWS = 1000
SHORTEST = 128
MICRO_TOKENS = ((20_000_000, 8192), (500_000_000, 4096), (4_000_000_000, 2048))  # parameters, tokens of a micro batch
FEW_STEPS = 100  # a run of fewer learns next to nothing
FEWEST = 10  # documents or rows of text, of which some can be held out
NOT_MEASURED = "a usual value: your data were not measured"
CHECKS = 10  # saves and validations in a run


@dataclass(frozen=True)
class Chosen:
    """A value and the reason for it."""

    value: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class NewShape:
    """The sizes of a new model."""

    hidden: int
    layers: int
    heads: int

    @property
    def inner(self) -> int:
        return -(-8 * self.hidden // 3) // 64 * 64

    def parameters(self, vocab_size: int) -> int:
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.inner + 2 * self.hidden
        return vocab_size * self.hidden + self.layers * layer + self.hidden


NEW_SHAPES = (
    (10_000_000, NewShape(hidden=128, layers=4, heads=4)),
    (100_000_000, NewShape(hidden=256, layers=6, heads=4)),
    (500_000_000, NewShape(hidden=384, layers=6, heads=6)),
    (3_000_000_000, NewShape(hidden=512, layers=8, heads=8)),
    (math.inf, NewShape(hidden=768, layers=12, heads=12)),
)  # tokens that are read in TEXT_EPOCHS epochs, up to about 20 a parameter at the upper end


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The chosen numbers of a run, and estimates of what it will be."""

    method: Method
    parameters: int
    shape: NewShape | None
    row_tokens: Chosen
    validation_fraction: Chosen
    batch: Chosen
    micro: Chosen
    epochs: Chosen
    rate: Chosen
    warmup: Chosen
    save: Chosen
    precision: tuple[str, str]
    rows: int
    steps: int


def choose(data: DataFacts, model: ModelFacts | None, machine: Machine, *, lora: bool) -> Choices:
    """Return the numbers for a first run."""
    method: Method = "new" if model is None else "lora" if lora else "full"
    shape = new_shape(data) if model is None else None
    parameters = shape.parameters(data.vocab_size) if shape else (model and model.parameters) or 1_000_000_000
    row_tokens = choose_row_tokens(data, model)
    fraction = choose_fraction(data, int(row_tokens.value))
    rows = max(1, round(rows_of(data, int(row_tokens.value)) * (1 - fraction.value)))
    batch = choose_batch(rows, method, data.kind, machine)
    epochs = choose_epochs(rows, int(batch.value), method, data.kind)
    if data.sizes is None:  # what follows from a number of rows that is not known
        batch, epochs = Chosen(batch.value, NOT_MEASURED), Chosen(epochs.value, NOT_MEASURED)
    steps = max(1, math.ceil(rows * epochs.value / batch.value))
    return Choices(
        method=method,
        parameters=parameters,
        shape=shape,
        row_tokens=row_tokens,
        validation_fraction=fraction,
        batch=batch,
        micro=choose_micro(int(batch.value), int(row_tokens.value), parameters, machine),
        epochs=epochs,
        rate=choose_rate(method, parameters, is_known=model is None or model.parameters is not None),
        warmup=Chosen(*((0.1, "a tenth of a short run") if steps < LARGE_STEPS else (0.03, "of the steps"))),
        save=Chosen(
            max(1, steps // CHECKS),
            NOT_MEASURED if data.sizes is None else f"about {CHECKS} saves and validations in this run",
        ),
        precision=choose_precision(machine),
        rows=rows,
        steps=steps,
    )


def choose_precision(machine: Machine) -> tuple[str, str]:
    if machine.has_bf16:
        return "bf16", "weights in fp32, computing in bf16"
    return "fp32", "this CPU computes slowly in bf16; on a GPU: bf16"


def new_shape(data: DataFacts) -> NewShape:
    """Return the sizes of a new model that this much text can teach something."""
    return next(shape for most, shape in NEW_SHAPES if data.tokens * TEXT_EPOCHS <= most)


def choose_row_tokens(data: DataFacts, model: ModelFacts | None) -> Chosen:
    """Return the length of a row: of a long conversation, or for text one that leaves enough rows to learn from."""
    limit = (model and model.positions) or 10**9
    if data.sizes is None:
        return capped(UNKNOWN_LENGTH, limit, NOT_MEASURED)
    if data.kind == "text":
        return text_row_tokens(data, limit)
    p95, longest = data.sizes.percentile(0.95), int(data.sizes.lengths.max())
    wanted = longest if longest <= 2 * p95 else p95
    chosen = min(max(wanted, SHORTEST), LONGEST["other"], limit)
    tokens = max(16, math.ceil(chosen / 8) * 8 if math.ceil(chosen / 8) * 8 <= limit else chosen // 8 * 8)
    longer = data.sizes.longer_than(tokens)
    said = "the longest sampled one fits" if longer == 0 else f"{longer:.1%} are longer and are cut into several rows"
    bound = f"; the model has {limit} positions" if tokens + 8 > limit else ""
    return Chosen(tokens, f"95% of the rows have up to {p95:,} tokens, {said}{bound}")


def text_row_tokens(data: DataFacts, limit: int) -> Chosen:
    """Return the longest power of two that leaves STEPS steps of the smaller batches in one epoch."""
    tokens = LONGEST["text"]
    while tokens > 256 and data.tokens / tokens < STEPS * 8:
        tokens //= 2
    return capped(tokens, limit, "as long as leaves enough rows for many steps")


def capped(tokens: int, limit: int, reason: str) -> Chosen:
    if tokens <= limit:
        return Chosen(tokens, reason)
    return Chosen(max(16, limit // 8 * 8), f"the model has {limit} positions")


def rows_of(data: DataFacts, row_tokens: int) -> float:
    """Estimate the rows of the whole corpus; conversations are packed as the sampled ones would be."""
    if data.sizes is None:
        return UNKNOWN_ROWS
    if data.kind == "text":
        return data.tokens / row_tokens
    lengths = data.sizes.lengths
    ends = lengths % row_tokens  # what is longer fills whole rows first
    rows = int((lengths // row_tokens).sum()) + best_fit(ends[ends > 0], row_tokens, seed=0).rows
    fill = float(lengths.sum()) / max(1, rows * row_tokens)
    return data.tokens / row_tokens / max(fill, 1e-9)


def choose_fraction(data: DataFacts, row_tokens: int) -> Chosen:
    """Return the share to hold out: about HELD_OUT documents or rows of text, between 1% and 10%."""
    if data.sizes is None:
        return Chosen(0.1, NOT_MEASURED)
    count = rows_of(data, row_tokens) if data.kind == "text" else data.sizes.documents
    unit = "row" if data.kind == "text" else "document"
    if count < FEWEST:
        few = count_of(max(1, round(count)), unit)
        return Chosen(0.0, f"{few} {'is' if round(count) <= 1 else 'are'} too few to hold any out")
    share = round(min(0.1, max(0.01, HELD_OUT / count)), 2)
    return Chosen(
        share, f"about {count_of(max(1, round(share * count)), unit)} held out, to be scored before and after"
    )


def choose_batch(rows: int, method: Method, kind: str, machine: Machine) -> Chosen:
    """Return the largest batch that still gives many steps, for a number that the ranks here can share."""
    epochs = usual_epochs(rows, method, kind)
    batch = BATCHES[-1]
    for size in BATCHES:
        if method == "lora" and size > LORA_BATCH:
            continue
        if rows * epochs / size >= (LARGE_STEPS if size > 32 else STEPS):
            batch = size
            break
    shared = max(1, round(batch / machine.ranks)) * machine.ranks
    return Chosen(shared, f"rows in a step, over all GPUs; of about {count_of(rows, 'row')}")


def usual_epochs(rows: int, method: Method, kind: str) -> int:
    """Return the epochs that recipes take for this many rows."""
    if method == "new" and kind == "text":
        return 1  # then new text; up to TEXT_EPOCHS are nearly as good
    return 3 if rows < 20_000 else 2 if rows < 100_000 else 1


def choose_epochs(rows: int, batch: int, method: Method, kind: str) -> Chosen:
    """Return the passes over the data: the usual number, or more if the data is small, up to MOST_EPOCHS."""
    usual = usual_epochs(rows, method, kind)
    needed = math.ceil(STEPS * batch / rows)
    epochs = min(max(usual, needed), MOST_EPOCHS[method])
    steps = math.ceil(rows * epochs / batch)
    why = f"about {count_of(steps, 'step')}"
    if needed > epochs:
        why += f"; more than {epochs} epochs over so few rows would mostly memorize them: more data helps"
    elif method == "new" and kind == "text" and epochs < TEXT_EPOCHS:
        why += f"; up to {TEXT_EPOCHS} epochs teach nearly as much as new text would"
    elif epochs > usual and steps >= STEPS:
        why += f"; {STEPS} or more are needed to learn something"
    return Chosen(epochs, why)


def choose_micro(batch: int, row_tokens: int, parameters: int, machine: Machine) -> Chosen:
    """Return the rows that a rank takes at a time; a divisor of its share of the batch."""
    share = batch // machine.ranks
    most = next((tokens for size, tokens in MICRO_TOKENS if parameters <= size), 0) // row_tokens
    micro = max(divisor for divisor in range(1, share + 1) if share % divisor == 0 and divisor <= max(1, most))
    return Chosen(micro, "rows that a rank takes at a time; raise it until memory is full")


def choose_rate(method: Method, parameters: int, *, is_known: bool) -> Chosen:
    """Return the usual learning rate for the method and the size."""
    rates = usual_learning_rates(method, parameters)
    size = f"{parameters:,} parameters" if is_known else "a model of 1B parameters, as its size is not known here"
    names = {"new": "for a new model of", "full": "for all weights of", "lora": "for LoRA on"}
    return Chosen(rates.usual, f"{names[method]} {size}; {rates.low:.1g} to {rates.high:.1g} can work")
