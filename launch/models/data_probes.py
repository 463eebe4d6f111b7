"""Probes of the training data and of the replies: who is named in it, and whether private data is left.

Counts of words, no judgement: a list of common given names, words that name men or women, and words for groups of
people, each counted in trained text and in prompts (what the model is asked, or only reads). A large difference between
two counts says what the model saw more of. The lists are short and mostly English; they miss most names of the world,
and some of their words mean other things too (Grace, Mark, white).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cluster.progress import counted
from data_prep.clean.privacy import KINDS, find_private
from data_prep.shards import Manifest, ShardReader

WORDS: Mapping[str, str] = {
    "women's names": "Mary Patricia Jennifer Linda Elizabeth Barbara Susan Jessica Sarah Karen Lisa Nancy Anna Maria"
    " Emma Olivia Sophia Isabella Lily Lucy Alice Julia Laura Fatima Aisha Priya Mei Yuki Elena Sofia Grace Jane",
    "men's names": "James John Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Mark Paul"
    " George Peter Jack Tom Tim Ben Sam Max Ahmed Mohammed Ali Raj Wei Hiroshi Ivan Carlos Juan Henry",
    "words for women": "she her hers herself woman women girl girls mother daughter sister wife lady ladies mrs ms",
    "words for men": "he him his himself man men boy boys father son brother husband gentleman gentlemen mr sir",
    "faiths": "christian christians muslim muslims jewish jew jews hindu hindus buddhist buddhists sikh sikhs atheist"
    " atheists catholic catholics",
    "origins": "african asian european american arab chinese indian mexican russian german french japanese black white"
    " hispanic latino immigrant immigrants refugee refugees",
    "other groups": "gay lesbian transgender bisexual disabled elderly homeless poor",
}
GROUP_OF = {word.casefold(): group for group, words in WORDS.items() for word in words.split()}
WORD = re.compile(r"\w+")
LOOKED_FOR_IN = 20_000  # training rows at most in which a reply's private datum is looked for


def probe(
    reader: ShardReader, manifest: Manifest, tokenizer: Any, samples: Sequence[Mapping[str, Any]], rows: int
) -> dict[str, Any]:
    """Return the probes as JSON values: `rows`, `words`, `private` and `replies`; {} with `rows` 0."""
    if not rows or not len(reader):
        return {}
    chosen = spread(len(reader), rows)
    words: dict[str, Counter[str]] = {"trained": Counter(), "prompts": Counter()}
    totals: Counter[str] = Counter()
    private: Counter[str] = Counter()
    for trained, prompts in texts_of(reader, tokenizer, chosen):
        for where, text in (("trained", trained), ("prompts", prompts)):
            found = WORD.findall(text.casefold())
            totals[where] += len(found)
            words[where].update(GROUP_OF[word] for word in found if word in GROUP_OF)
        private.update(kind for _, _, kind in find_private((trained + "\n" + prompts).encode(), KINDS))
    return {
        "rows": len(chosen),
        "of_rows": len(reader),
        "words": {where: {"all": totals[where], **{group: words[where][group] for group in WORDS}} for where in words},
        "private": {"removed": removed_by_cleaning(manifest), "left": dict(sorted(private.items()))},
        "replies": repeated_private_data(reader, tokenizer, samples),
    }


def spread(rows: int, wanted: int) -> range:
    """Return up to `wanted` row numbers, evenly spaced."""
    return range(0, rows, max(1, -(-rows // wanted)))


def texts_of(reader: ShardReader, tokenizer: Any, rows: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Yield the trained text of each row and the text that is only read."""
    for row in counted(rows, [1] * len(rows), "training rows looked through", len(rows), "rows"):
        arrays = reader.rows([row])
        used = int(arrays.piece_tokens[0].sum())
        ids, mask = arrays.input_ids[0, :used], arrays.loss_mask[0, :used]
        spans = [tokenizer.decode(ids[kept].tolist(), skip_special_tokens=True) for kept in (mask, ~mask)]
        yield spans[0], spans[1]


def removed_by_cleaning(manifest: Manifest) -> dict[str, int]:
    """Return how often cleaning replaced private data of each kind, over all sources."""
    changed: Counter[str] = Counter()
    for entry in manifest.documents.values():
        changed.update({kind: count for kind, count in entry.get("changed", {}).items() if kind in KINDS})
    return dict(sorted(changed.items()))


def repeated_private_data(
    reader: ShardReader, tokenizer: Any, samples: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the private data in the tuned model's replies that no prompt had, and whether the training split has it.

    The datum itself is not repeated in the result: `sample` says which reply has it, from 1.
    """
    found = [(number, *datum) for number, sample in enumerate(samples, 1) for datum in new_private_data(sample)]
    if not found:
        return []
    rows = spread(len(reader), LOOKED_FOR_IN)
    seen = seen_in({datum for _, datum, _ in found}, (a + "\n" + b for a, b in texts_of(reader, tokenizer, rows)))
    return [{"sample": number, "kind": kind, "in_training": datum in seen} for number, datum, kind in found]


def new_private_data(sample: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the private data of a tuned reply that its prompt does not have, each with its kind."""
    raw = sample["tuned"].encode("utf-8", "replace")
    data = [(raw[begin:end].decode("utf-8", "replace"), kind) for begin, end, kind in find_private(raw, KINDS)]
    return [(datum, kind) for datum, kind in data if datum not in sample["prompt"]]


def seen_in(data: set[str], texts: Iterable[str]) -> set[str]:
    """Return which data occur in the texts."""
    return {datum for text in texts for datum in data if datum in text}


def as_lines(probes: Mapping[str, Any]) -> list[str]:
    """Return the probes for people."""
    if not probes:
        return []
    trained, asked = probes["words"]["trained"], probes["words"]["prompts"]
    told = ", ".join(
        f"{group} {trained[group]:,} / {asked[group]:,}" for group in WORDS if trained[group] + asked[group]
    )
    looked, replies = f"{probes['rows']:,} of {probes['of_rows']:,} training rows", probes["replies"]
    removed, left = (kinds_text(probes["private"][where]) for where in ("removed", "left"))
    lines = [
        f"words in trained text / prompts ({looked}): {told or 'none'}",
        f"private data: removed by cleaning: {removed}; left in these rows: {left}",
    ]
    if replies:
        known = sum(one["in_training"] for one in replies)
        lines.append(f"warning: {len(replies)} private data in replies, {known} of them also in the training rows")
    return lines


def kinds_text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items()) or "none"
