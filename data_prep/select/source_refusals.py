"""Refuse a source, or warn of it, if so many records are unusable that the settings must be wrong, not the rows."""

from __future__ import annotations

import logging
from collections import Counter

from cluster.errors import DataError
from data_prep.encode.conversations import LEFT_OUT, REFUSED, UNTOLD
from data_prep.encode.encoding import NO_ANSWER, NO_TOKEN, NOT_TRAINED, NOTHING_SAID, RUN_TOGETHER
from data_prep.fetch.provenance import document_place
from data_prep.fetch.sources import Corpus
from data_prep.select.dedup_and_split import Records

log = logging.getLogger(__name__)

REASONS = (REFUSED, LEFT_OUT, UNTOLD, NO_ANSWER, NOT_TRAINED, NOTHING_SAID, NO_TOKEN)
MOST = 0.5


def check_refused(corpus: Corpus, records: Records) -> None:
    """Raise DataError if most records of a source cannot be trained on: it says why, and where the first one stands.

    Fewer are only counted and rejected. A slice cannot decide this, since it has only a part of a source.
    """
    read: Counter[str] = Counter()
    refused: dict[str, Counter[str]] = {}
    for file, count, reasons in zip(corpus.files, records.read, records.rejected, strict=True):
        read[file.info.source] += count
        found = refused.setdefault(file.info.source, Counter())
        found.update({reason: reasons[reason] for reason in REASONS if reasons[reason]})
    for label, found in refused.items():
        if found.total() > MOST * read[label]:
            ((reason, count),) = found.most_common(1)
            raise DataError(
                f"{label}: {found.total():,} of {read[label]:,} records cannot be trained on, {count:,} of them: "
                f"{reason}{first_place(corpus, records, label, reason)}; fix them, or the settings under data for "
                "their columns and chat_template"
            )


def tell_run_together(corpus: Corpus, records: Records) -> None:
    """Warn of sources in most pairs of which two words run together where the completion begins."""
    read: Counter[str] = Counter()
    together: Counter[str] = Counter()
    for file, count, changed in zip(corpus.files, records.read, records.changed, strict=True):
        read[file.info.source] += count
        together[file.info.source] += changed[RUN_TOGETHER]
    for label, count in together.items():
        if count > MOST * read[label]:
            log.warning(
                "%s: in %s of %s pairs the prompt ends with a letter or digit and the completion begins with one; "
                "nothing is put between them, so a model learns to continue in the middle of a word; put a space or an "
                "end of line there, or write a chat_template below data",
                label,
                f"{count:,}",
                f"{read[label]:,}",
            )


def first_place(corpus: Corpus, records: Records, label: str, reason: str) -> str:
    """Return where the first sample of a reason stands, and how it begins."""
    samples = [one for one in records.samples if one.reason == reason and corpus.files[one.file].info.source == label]
    if not samples:
        return ""
    first = min(samples, key=lambda sample: (sample.file, sample.record))
    return f" ({document_place(corpus.files[first.file].info, first.record)}: {first.text[:200]!r})"
