from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError, DataError
from data_prep.config import DataConfig
from data_prep.encode.conversations import CHATML, check_template, read_template
from data_prep.encode.conversations import TEMPLATES as OURS
from data_prep.encode.encoded_slices import encode_parts, trained_tokens
from data_prep.encode.encoding import ACROSS, Encoded, Encoder
from data_prep.encode.tokenizer import SPECIAL_TOKENS, encoder_spec
from data_prep.fetch.sources import Corpus, cut_slices, find_corpus
from data_prep.read.parts import Document, Rejected, Turn
from data_prep.shards.tokenizer_files import open_tokenizer
from tests.data_prep.reading_rows import all_kept

PLAIN_CHATML = Path(__file__).with_name("plain_chatml.jinja").read_text(encoding="utf-8")
SCRIPT = """{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""
DIALOGUE = [
    ("system", "Be kind."),
    ("user", "Hi  you"),
    ("assistant", "Hello,\n wörld! "),
    ("user", "Bye"),
    ("assistant", "Bye."),
]


def messages(*turns: tuple[str, str]) -> Document:
    return Document(0, "messages", tuple(Turn(*turn) for turn in turns))


def trained_text(encoded: Encoded, tokenizer: Any) -> str:
    return str(tokenizer.decode(encoded.input_ids[encoded.loss_mask].tolist()))


def test_everything_but_the_first_token_of_a_text_is_trained_and_it_ends_with_eos(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    texts = encoder_with(None).encode_texts([b"Hello world", b"Bye"])

    assert [tokenizer.decode(ids.tolist()) for ids in texts] == ["Hello world<|endoftext|>", "Bye<|endoftext|>"]
    assert trained_tokens(texts, None).tolist() == [len(ids) - 1 for ids in texts]


def test_a_pair_without_a_template_trains_the_completion_and_eos_only(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    pair = Document(0, "pair", (Turn("user", "Hello"), Turn("assistant", " world")))

    ((encoded,),) = all_kept(encoder_with(None, bos=1).encode([pair]))

    assert tokenizer.decode(encoded.input_ids.tolist()) == "<|im_start|>Hello world<|endoftext|>"
    assert trained_text(encoded, tokenizer) == " world<|endoftext|>"


def test_a_token_that_holds_the_end_of_the_prompt_and_the_completion_is_trained_and_counted(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    encoder = encoder_with(None)
    pair = Document(0, "pair", (Turn("user", "Hello "), Turn("assistant", "world")))

    ((encoded,),) = all_kept(encoder.encode([pair]))

    assert trained_text(encoded, tokenizer) == " world<|endoftext|>"
    assert +encoder.changed == {ACROSS: 1}


@pytest.mark.parametrize("template", [CHATML.read_text(), PLAIN_CHATML], ids=["markers", "no markers"])
def test_what_the_assistant_says_and_its_stop_token_are_trained_and_nothing_else(
    encoder_with: Callable[..., Encoder], tokenizer: Any, template: str
) -> None:
    ((encoded,),) = all_kept(encoder_with(template).encode([messages(*DIALOGUE)]))

    assert trained_text(encoded, tokenizer) == "Hello,\n wörld! <|im_end|>Bye.<|im_end|>"


def test_ids_and_mask_are_those_of_transformers(encoder_with: Callable[..., Encoder], tokenizer: Any) -> None:
    chat = [{"role": role, "content": text} for role, text in DIALOGUE]
    theirs = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)

    ((ours,),) = all_kept(encoder_with(CHATML.read_text()).encode([messages(*DIALOGUE)]))

    assert ours.input_ids.tolist() == theirs["input_ids"]
    assert ours.loss_mask.tolist() == [bool(value) for value in theirs["assistant_masks"]]


def test_a_pair_with_a_template_is_a_conversation_of_two(encoder_with: Callable[..., Encoder]) -> None:
    encoder = encoder_with(CHATML.read_text())
    pair = Document(0, "pair", (Turn("user", "Hi"), Turn("assistant", "Bye")))

    (a,), (b,) = all_kept(encoder.encode([pair, messages(("user", "Hi"), ("assistant", "Bye"))]))

    assert a.input_ids.tolist() == b.input_ids.tolist() and a.loss_mask.tolist() == b.loss_mask.tolist()


def test_a_conversation_without_an_assistant_is_rejected_and_the_others_stay(
    encoder_with: Callable[..., Encoder],
) -> None:
    lonely = Document(7, "messages", (Turn("user", "Hi"),))

    encoded, rejected = encoder_with(CHATML.read_text()).encode([messages(*DIALOGUE), lonely])
    ((kept,),) = all_kept([encoded])

    assert kept.loss_mask.any()
    assert rejected == Rejected(7, "no turn has the role 'assistant'") and rejected.excerpt == "roles here: user"


def test_control_tokens_spelled_in_a_document_never_become_control_tokens(encoder_with: Callable[..., Encoder]) -> None:
    encoder = encoder_with(CHATML.read_text())
    text = Document(0, "text", (Turn("text", "so <|im_end|> is"),))

    (ids,) = encoder.encode_texts([text.turns[0].text.encode()])

    assert set(ids[:-1].tolist()).isdisjoint({0, 1, 2})
    assert encoder.usable(text) == text
    chat = messages(("user", "a <|im_end|> b"), ("assistant", "c"))
    assert encoder.usable(chat) == Rejected(0, "control token in a message")


@pytest.mark.parametrize("template", [None, CHATML.read_text()])
def test_an_end_token_spelled_at_the_end_of_a_completion_is_not_trained_twice(
    encoder_with: Callable[..., Encoder], template: str | None
) -> None:
    encoder = encoder_with(template)
    spelled = Document(0, "pair", (Turn("user", "Hi"), Turn("assistant", "Bye<|endoftext|>\n")))

    assert encoder.usable(spelled) == Document(0, "pair", (Turn("user", "Hi"), Turn("assistant", "Bye")))
    nothing = Document(0, "pair", (Turn("user", "Hi"), Turn("assistant", "<|endoftext|>")))
    assert encoder.usable(nothing) == Rejected(0, "empty")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (SCRIPT, "no special token"),
        (CHATML.read_text().replace("{{- '<|im_end|>' }}", ""), "no special token"),
        ("{{ raise_exception('only poems') }}", "refused by the chat template: only poems"),
        ("{% generation %}{% endgeneration %}", "partly left out by the chat template"),
        (PLAIN_CHATML + "{% generation %}{% endgeneration %}", "marks 0 of 2"),
    ],
)
def test_a_template_that_does_not_tell_what_to_train_is_refused(template: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_template(template, {}, SPECIAL_TOKENS)


def test_answers_that_are_written_otherwise_later_are_trained_in_a_sequence_of_their_own(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    earlier = "(message['content'][:3] if loop.index == 2 and not loop.last else message['content'])"
    template = PLAIN_CHATML.replace("message['content']", earlier)
    said = ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Bye.")

    ((first, second),) = all_kept(encoder_with(template).encode([messages(*said)]))

    assert trained_text(first, tokenizer) == "Hello<|im_end|>" and trained_text(second, tokenizer) == "Bye.<|im_end|>"
    assert "Hel<|im_end|>" in tokenizer.decode(second.input_ids.tolist())


def test_a_template_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected 'plain', 'chatml' or the path of a Jinja file"):
        read_template("chatlm", None)


def test_the_bos_of_a_tokenizer_that_adds_one_begins_every_text(
    test_data: Path, corpus: Path, config_of: Callable[..., DataConfig]
) -> None:
    books = config_of(corpus / "books")
    spec = encoder_spec(with_pad(open_tokenizer(test_data / "stories260k")), find_corpus(books.sources, {}))

    texts = list(Encoder(spec).encode_texts([b"Once upon", b"a time"]))

    assert [(ids[0], ids[-1]) for ids in texts] == [(spec.bos, spec.eos)] * 2 == [(1, 2)] * 2
    assert [len(ids) for ids in texts] == [
        len(ids) + 2 for ids in Encoder(spec).engine.encode_plain([b"Once upon", b"a time"])
    ]


@pytest.mark.parametrize(
    ("prompt", "completion"), [("2+2=", "4"), ("return 3 * (", "r * r)"), ("The keeper said", ", softly"), ("a ", "b")]
)
def test_a_marked_space_stands_only_where_the_pair_has_one(test_data: Path, prompt: str, completion: str) -> None:
    tokenizer = with_pad(open_tokenizer(test_data / "stories260k"))
    spec = encoder_spec(tokenizer, Corpus(files=[], passed_over={}))

    ((encoded,),) = all_kept(
        Encoder(spec).encode([Document(0, "pair", (Turn("user", prompt), Turn("assistant", completion)))])
    )

    assert tokenizer.decode(encoded.input_ids.tolist(), skip_special_tokens=True) == prompt + completion
    assert encoded.input_ids[1:-1].tolist() == tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
    assert completion in trained_text(encoded, tokenizer)


@pytest.mark.parametrize(
    ("template", "digest"),
    [("plain", "5078c606cbc8bca6"), (PLAIN_CHATML, "db9e150a2db1a12d")],
    ids=["markers", "no markers"],
)
def test_real_conversations_of_words_alone_keep_their_ids_and_masks(
    test_data: Path, config_of: Callable[..., DataConfig], template: str, digest: str
) -> None:
    """The digests are of the version before tools and reasoning went to the template."""
    tokenizer = with_pad(open_tokenizer(test_data / "stories260k"))
    tokenizer.chat_template = OURS["plain"].read_text()
    config = config_of(test_data / "formats/identity.json", test_data / "formats/v1_sft_demo.jsonl")
    corpus = find_corpus(config.sources, {})
    spec = encoder_spec(tokenizer, corpus)
    encoder = Encoder(spec if template == "plain" else replace(spec, chat_template=template))
    found = hashlib.sha256()

    for parts in cut_slices(corpus, 2**24):
        table = encode_parts(parts, encoder, config.cleaning)
        found.update(table.ids.astype("<u4").tobytes() + bytes(table.mask))

    assert found.hexdigest().startswith(digest)


def with_pad(tokenizer: Any) -> Any:
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
