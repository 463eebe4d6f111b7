"""What may not be published is found wherever it stands, and what was scrubbed holds none of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.publish.private_text import leaks, local_paths, scrub, scrubbed

PRIVATE = [
    "/home/zoe/data/rows.jsonl",
    "~/corpus/books",
    "~zoe/corpus/books",
    "file:///scratch/zoe/rows",
    "../../home/zoe/rows",
    "home/zoe/rows.csv",
    "https://zoe:hunter2@example.com/rows.jsonl",
    "https://example.com/rows.jsonl?X-Amz-Signature=abc#part",
    "s3://key:secret@bucket/rows",
    "hf_" + "a" * 34,
    "sk-proj-" + "b" * 24,
    "ghp_" + "c" * 36,
    "AKIA" + "D" * 16,
    "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
    "api_key: 0123456789abcdef",
    "nfs01:/export/zoe/rows",
    "Authorization: Bearer abcdefghijklmnop",
    "WANDB_API_KEY=0123456789abcdef",
    'password = "hunter2hunter2"',
]
FINE = ["and/or", "24/7", "https://huggingface.co/zoe/shop", "s3://bucket/rows", "eos_token: <|endoftext|>", "a/b", "/"]
SEPARATORS = [" ", "\n", ", ", "\t", "|", '"', "(", "'"]


@pytest.mark.parametrize("text", PRIVATE)
def test_something_private_is_found_and_scrubbed(text: str) -> None:
    assert list(leaks(f"see {text} there", []))
    assert not list(leaks(scrub(f"see {text} there"), []))


@pytest.mark.parametrize("text", FINE)
def test_what_is_not_private_stays_as_it_is(text: str) -> None:
    assert scrub(f"see {text} there") == f"see {text} there"
    assert not list(leaks(f"see {text} there", []))


@given(st.lists(st.tuples(st.sampled_from(PRIVATE + FINE), st.sampled_from(SEPARATORS)), min_size=1, max_size=6))
def test_a_scrubbed_text_holds_nothing_private(parts: list[tuple[str, str]]) -> None:
    assert not list(leaks(scrub("".join(text + separator for text, separator in parts)), []))


def test_a_path_keeps_its_last_name_and_an_address_what_is_not_a_credential() -> None:
    assert scrub("from /home/zoe/data/rows.jsonl on") == "from rows.jsonl on"
    assert scrub("https://zoe:pw@example.com/a/rows?sig=1") == "https://example.com/a/rows"
    assert scrubbed({"entity": "zoe", "path": ["/data/zoe/a"], "rows": 3}) == {
        "entity": "(removed)",
        "path": ["a"],
        "rows": 3,
    }


def test_the_token_of_this_process_is_found_by_its_value() -> None:
    assert list(leaks("so\nit is 'a b'", ["a b"])) == [
        (2, "the token of this process, or the path of a folder of this machine")
    ]


def test_local_paths_are_found_among_the_values_of_settings() -> None:
    values = {"base": "/data/llama", "names": ["~/x", "org/model"], "pattern": "/", "rows": 1}
    assert list(local_paths(values)) == ["/data/llama", "~/x"]
