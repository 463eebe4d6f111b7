"""What a model's replies are like: whether they end, how long they are, how often they say nothing or repeat.

And, where there is a reference, how near they come to it. These are alarms, not measures of quality: a good answer in
other words scores low.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from cluster.progress import counted
from training.evaluate.held_out_prompts import HeldOutPrompt
from training.generate.answers import Answer, answer, answer_together
from training.generate.sampling import Sampling

log = logging.getLogger(__name__)

BATCH = 8  # prompts answered at a time
REPEATED_TOKENS = 4  # length of the runs of tokens that count as repeated
EXTRA = "pip install -e '.[eval]'"

# Words; each character of scripts that are written without spaces: Thai, Lao, Burmese, Khmer, kana, Han
WORD = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+?(?=[\u0e00-"
    r"\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\b)"
)


def answer_all(model: Any, tokenizer: Any, prompts: Sequence[HeldOutPrompt], tokens: int, what: str) -> list[Answer]:
    """Answer prompts with the likeliest tokens, in batches where those give the same answers as one at a time.

    The most padded prompt of the first batch is answered alone too. If its answers differ, as where a model does not
    mind its padding, or rounds differently, all prompts are answered one at a time.
    """
    sampling = Sampling(tokens=tokens)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number].prompt))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    answers: dict[int, Answer] = {}
    together = True
    for batch in counted(batches, map(len, batches), what, len(order), "prompts"):
        ids = [prompts[number].prompt for number in batch]
        found = answer_together(model, tokenizer, ids, sampling) if together else []
        if together and batch is batches[0] and len(batch) > 1:
            together = answer(model, tokenizer, ids[0], sampling) == found[0]
        if not together:
            found = [answer(model, tokenizer, one, sampling) for one in ids]
        answers.update(zip(batch, found, strict=True))
    return [answers[number] for number in range(len(prompts))]


def reply_figures(tokenizer: Any, answers: Sequence[Answer], prompts: Sequence[HeldOutPrompt]) -> dict[str, Any]:
    """Return what the replies are like, as shares and means; lengths are in tokens."""
    if not answers:
        return {}
    return {
        "replies": len(answers),
        "stop_rate": stop_rate(answers),
        "tokens": statistics.fmean(one.tokens for one in answers),
        "reference_tokens": statistics.fmean(len(prompt.reference) for prompt in prompts),
        "empty_share": statistics.fmean(not one.text for one in answers),
        "repeated_share": statistics.fmean(repeated_share(tokenizer, one) for one in answers),
    }


def stop_rate(answers: Sequence[Answer]) -> float | None:
    """Return the share of answers that the model ended itself."""
    return sum(one.stopped for one in answers) / len(answers) if answers else None


def repeated_share(tokenizer: Any, reply: Answer) -> float:
    """Return which share of a reply's runs of four tokens it has said before."""
    ids = tokenizer.encode(reply.text, add_special_tokens=False)
    runs = [tuple(ids[start : start + REPEATED_TOKENS]) for start in range(len(ids) - REPEATED_TOKENS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def nearness(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return exact match (of the texts, white space aside), chrF and ROUGE-L F1, from 0 to 1; {} without answers.

    chrF (Popović 2015) compares characters, in any script. ROUGE-L (Lin 2004) compares words, upper and lower case
    alike; in scripts without spaces, each character counts as a word. rouge_score's own tokenizer would drop every
    character but a to z and 0 to 9, so that texts of most languages would score 0. Both need libraries, and are left
    out, with a warning, where these are missing.
    """
    if not answers:
        return {}
    same = [reply.split() == said.split() for reply, said in zip(answers, references, strict=True)]
    found = {"exact_match": statistics.fmean(same)}
    if not has_text_metrics():
        return found
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_chrf

    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    rouge = [scorer.score(said, reply)["rougeL"].fmeasure for reply, said in zip(answers, references, strict=True)]
    chrf = corpus_chrf(list(answers), [list(references)]).score / 100
    return found | {"chrf": chrf, "rouge_l": statistics.fmean(rouge)}


@functools.cache
def has_text_metrics() -> bool:
    """Return whether the libraries of the text metrics are installed; say so once if not."""
    missing = [name for name in ("sacrebleu", "rouge_score") if importlib.util.find_spec(name) is None]
    if missing:
        log.warning("chrF and ROUGE-L are left out: %s not installed: %s", " and ".join(missing), EXTRA)
    return not missing


class Words:
    """The tokenizer that `rouge_score` is given."""

    tokenize: Callable[[str], list[str]] = staticmethod(lambda text: WORD.findall(text.casefold()))
