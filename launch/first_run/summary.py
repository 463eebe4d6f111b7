"""Say what was found, what was chosen and how long it may take."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from cluster.wording import count_of
from data_prep.files.other_formats import advice_on
from launch.first_run.choices import FEW_STEPS, MOST_EPOCHS, Choices
from launch.first_run.facts import DataFacts, Machine, ModelFacts
from launch.first_run.times import time_text
from training.models.untrainable import missing_peft

INDENT = 15  # columns of the names before the texts
WIDEST = 120
KINDS_IN_WORDS = {"text": "running text", "pairs": "pairs", "conversations": "conversations"}


def summary(data: str, facts: DataFacts, model: ModelFacts | None, it: Choices, machine: Machine) -> Iterator[str]:
    """Yield lines for the person who typed `shardline init`."""
    yield f"data           {data}: {facts.kind}, {data_size(facts)}"
    yield from about_files(facts)
    if facts.sizes is not None and facts.kind != "text":
        long, longest = facts.sizes.percentile(0.95), int(facts.sizes.lengths.max())
        yield f"               95% have up to {long:,} tokens, the longest of the sample {longest:,}"
    yield from model_summary(facts, model, it)
    if facts.sizes is None:
        yield f"rows           {it.row_tokens.value:g} tokens: {it.row_tokens.reason}"
        yield "training       how many steps and how long is not known before the data are measured"
    else:
        yield f"rows           {it.row_tokens.value:g} tokens: {it.row_tokens.reason}"
        yield f"held out       {it.validation_fraction.value:.0%}: {it.validation_fraction.reason}"
        yield (
            f"training       {count_of(int(it.epochs.value), 'epoch')} of about {count_of(it.rows, 'row')},"
            f" {it.batch.value:g} a step: {it.epochs.reason}"
        )
    yield f"learning rate  {it.rate.value:g} {it.rate.reason}"
    if facts.sizes is not None:
        yield f"time           {time_text(it, machine)}"
        yield from doubts(it)
    if missing := missing_peft(lora=it.method == "lora"):
        yield f"WARNING        {missing}"
    if it.method == "lora" and model is not None and facts.kind != "text":
        yield from (f"WARNING        {one}" for one in model.lora_doubts)


def doubts(it: Choices) -> Iterator[str]:
    """Yield what makes the run unlikely to learn."""
    if it.steps < FEW_STEPS:
        needed = -(-FEW_STEPS * int(it.batch.value) // MOST_EPOCHS[it.method])
        yield (
            f"WARNING        {count_of(it.steps, 'step')} will teach next to nothing: the data fill about"
            f" {count_of(it.rows, 'row')}; aim at {needed:,} rows or more, {needed * int(it.row_tokens.value):,} tokens"
        )


def about_files(facts: DataFacts) -> Iterator[str]:
    """Yield why something is open, and what is not read as the kind of data says."""
    yield from (f"{' ' * INDENT}{remark}" for remark in facts.remarks)
    for name, kind in facts.others:
        yield (
            f"WARNING        {name} holds {KINDS_IN_WORDS[kind]} and is trained on too; to leave it out, name the other"
            " files as --data, as a glob in quotes"
        )
    yield from (f"WARNING        {name} cannot be read: {why}" for name, why in facts.refused)
    if facts.unread:
        named = ", ".join(f"{n} {suffix}" for suffix, n in sorted(facts.unread.items()))
        yield f"WARNING        not read: {named}{advice_on(facts.unread)}"
    if facts.sizes is not None and facts.sizes.rejected:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(facts.sizes.rejected.items()))
        yield f"WARNING        of the sampled documents these cannot be used: {reasons}; `shardline check` says more"


def data_size(facts: DataFacts) -> str:
    if facts.sizes is None:
        size = f", {facts.bytes:,} bytes" if facts.bytes else ""
        return f"not measured{size}: {facts.unmeasured}"
    by = " (with a tokenizer trained on the sample)" if facts.by_own_tokenizer else ""
    return f"about {count_of(max(1, round(facts.sizes.documents)), 'document')} and {facts.tokens:,.0f} tokens{by}"


def model_summary(facts: DataFacts, model: ModelFacts | None, it: Choices) -> Iterator[str]:
    """Yield lines on the model."""
    if model is None:
        why = ", a size for this much text" if facts.sizes is not None else ""
        yield f"model          new: about {it.parameters:,} random parameters{why}"
        return
    if model.folder is None:
        yield f"model          {model.name}: not on this machine; `shardline check` fetches it"
        return
    size = f"{model.parameters:,} parameters" if model.parameters else "of unknown size"
    positions = f", {model.positions:,} positions" if model.positions else ""
    yield f"model          {model.name}: {size}{positions}; {'LoRA' if it.method == 'lora' else 'all weights'} trained"
    if facts.is_talk:
        yield f"template       {model.template or 'its own'}: {model.template_reason}"


def wrapped(line: str, columns: int, indent: int = INDENT) -> str:
    """Break a line between words where the terminal ends; what follows is indented, as below a name of the summary."""
    width = max(40, min(columns, WIDEST))
    lines = textwrap.wrap(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)
