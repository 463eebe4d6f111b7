from __future__ import annotations

import pytest

from data_prep.clean.language import find_language
from data_prep.clean.quality import Rule, apply_rules, repeated_runs

PROSE = (
    "The sea was calm that morning, and the fishermen of the village had already gone out with their boats. "
    "Nobody knew what to make of the stranger who sat by the harbour wall. She had come with the night train, "
    "carrying a small case, and asked for a room at the inn. When the keeper wanted to know her name she only "
    "smiled. Later he would say that he had seen it at once: here was somebody who waited for a ship that could "
    "not come. But of course everyone says such things afterwards."
)


@pytest.mark.parametrize("rule", ["gopher", "repetition", "c4", "fineweb"])
def test_prose_passes_every_rule(rule: Rule) -> None:
    assert apply_rules(PROSE, [rule]) == (PROSE, None)


@pytest.mark.parametrize(
    ("rule", "text", "reason"),
    [
        ("gopher", "too short", "fewer than 50 words"),
        ("gopher", PROSE.replace(" ", "# ", 30), "symbols"),
        ("gopher", "• " + PROSE.replace(". ", ".\n• "), "bullet points"),
        ("gopher", "12 34 56 78 " * 10 + PROSE, "words without letters"),
        ("gopher", " ".join(["Meerschweinchen"] * 60), "mean word length"),
        ("gopher", " ".join(["Katze"] * 60), "stop words"),
        ("repetition", "\n".join([PROSE] * 3), "repeated lines"),
        ("repetition", " ".join([PROSE] * 2), "repeated runs of 5 words"),
        ("repetition", "click here " * 40, "the most frequent run of 2 words"),
        ("c4", f"{PROSE} Lorem ipsum dolor.", "lorem ipsum"),
        ("c4", f"{PROSE} if (x) {{ y }}.", "curly bracket"),
        ("c4", "Home\nAbout us\nThis is a sentence.", "fewer than 5 sentences"),
        ("fineweb", "\n".join(["A menu entry without an end at all"] * 9), "lines without punctuation"),
        ("fineweb", PROSE.replace(" ", ".\n"), "short lines"),
        ("fineweb", "\n".join([PROSE, PROSE]), "repeated lines"),
    ],
)
def test_a_poor_page_is_rejected_with_the_rule_and_what_is_poor(rule: Rule, text: str, reason: str) -> None:
    assert apply_rules(text, [rule])[1] == f"quality: {rule}: {reason}"


def test_gopher_keeps_a_novel() -> None:
    novel = "\n".join(PROSE.replace("stranger", f"stranger of year {year}") for year in range(1400))

    assert len(novel.split()) > 100_000 and apply_rules(novel, ["gopher"]) == (novel, None)


def test_c4_removes_lines_that_are_no_sentences() -> None:
    text, reason = apply_rules(f"Menu\n{PROSE}\nThis page uses cookies.\nRead more...", ["c4"])

    assert (text, reason) == (PROSE, None)


def test_characters_of_overlapping_repeats_count_once() -> None:
    assert repeated_runs(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]) is None
    assert repeated_runs(f"{PROSE} sat by the harbour wall".split()) is None


@pytest.mark.parametrize(
    ("text", "language"),
    [(PROSE, "en"), ("Wer reitet so spät durch Nacht und Wind? Es ist der Vater mit seinem Kind.", "de")],
)
def test_a_language_is_told_from_a_few_words(text: str, language: str) -> None:
    found, probability = find_language(text)

    assert found == language and probability > 0.9
