"""The tokenizer of the data: the model's, another one's, or one trained on the corpus."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import digest_of, sha256_of, whole_folder
from cluster.errors import ConfigError, DataError
from cluster.model_files import CONFIG, found_folder, read_settings
from data_prep.clean.cleaning import Cleaner
from data_prep.config import CleaningConfig, DataConfig
from data_prep.encode.conversations import check_template, dated, read_template, turn_tokens
from data_prep.encode.encoding import EncoderSpec, TrainOn
from data_prep.encode.tokenizer_cache import KeptTokenizer, follows_rules, open_kept
from data_prep.fetch.sources import Corpus, parts_of
from data_prep.read.parts import Rejected, read_part
from data_prep.shards import tokenizer_digest
from data_prep.shards.tokenizer_files import CHATML_TOKENS, add_tokens, open_tokenizer, vocabulary_size

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = [END_OF_TEXT, *CHATML_TOKENS]
RULES = "tokenizer.json"
SAMPLE_BYTES = 16 * 2**20  # of the corpus, to train a tokenizer on
TRAINING_VERSION = 2  # part of a trained tokenizer's digest: raise it when training changes
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


@dataclass(frozen=True, kw_only=True)
class DataTokenizer:
    """The tokenizer of the data, and the tokens that it has beyond those of the folder it was read from."""

    tokenizer: Any
    added_tokens: list[str]


def load_tokenizer(
    config: DataConfig, model_path: str | None, corpus: Corpus, work: Path, *, may_add_tokens: bool = False
) -> DataTokenizer:
    """Return the data's tokenizer, its chat template and pad token set.

    A trained one is kept in `work` under a digest of what it was trained on. With `may_add_tokens`, the template's
    tokens that it lacks are added. Raises ConfigError if none is named or its template needs other tokens, DataError if
    it cannot be used.
    """
    if config.tokenizer is not None and config.tokenizer.train is not None:
        tokenizer = trained_tokenizer(corpus, config.tokenizer.train.vocab_size, work)
    else:
        tokenizer = open_data_tokenizer(config, model_path)
    return with_template(tokenizer, config, is_text=corpus.is_text, may_add_tokens=may_add_tokens)


def open_data_tokenizer(config: DataConfig, model_path: str | None) -> Any:
    """Open the tokenizer of the configuration or the model, and warn if its class changes its rules."""
    folder = tokenizer_folder(config, model_path)
    tokenizer = open_kept(folder)
    is_kept = isinstance(tokenizer, KeptTokenizer)
    if not (tokenizer.facts.follows_file if is_kept else follows_rules(tokenizer, folder / RULES)):
        log.warning(
            "the tokenizer %s: transformers opens it as a %s, which gives other token ids than its %s; "
            "to follow the file, set tokenizer_class to PreTrainedTokenizerFast in its tokenizer_config.json",
            folder,
            tokenizer.facts.class_name if is_kept else type(tokenizer).__name__,
            RULES,
        )
    return tokenizer


def with_template(tokenizer: Any, config: DataConfig, *, is_text: bool, may_add_tokens: bool) -> DataTokenizer:
    """Return a tokenizer with the configured template, the tokens that the template needs, and a pad token."""
    tokenizer.chat_template = read_template(config.chat_template, single_template(tokenizer.chat_template))
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path} has no eos token, so no document would have an end; "
            "set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    added: list[str] = []
    if config.chat_template == "chatml" and not is_text and lacks_chatml(tokenizer):
        if isinstance(tokenizer, KeptTokenizer):  # to which nothing can be added
            opened = open_tokenizer(Path(tokenizer.name_or_path))
            opened.chat_template, opened.pad_token = tokenizer.chat_template, tokenizer.pad_token
            tokenizer = opened
        added = add_chatml_tokens(tokenizer, may_add_tokens=may_add_tokens)
    return DataTokenizer(tokenizer=tokenizer, added_tokens=added)


def lacks_chatml(tokenizer: Any) -> bool:
    """Return whether a tokenizer lacks a token of ChatML."""
    return any(tokenizer.backend_tokenizer.token_to_id(token) is None for token in CHATML_TOKENS)


def digest_of_rules(tokenizer: Any) -> str:
    """Return what `tokenizer_digest` gives for a tokenizer, without computing it for a kept one."""
    return tokenizer.facts.digest if isinstance(tokenizer, KeptTokenizer) else tokenizer_digest(tokenizer)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer's folder, whole or not at all. Raises DataError if it would not be opened as the same one."""
    with whole_folder(folder) as partial:
        tokenizer.save_pretrained(partial)
        if isinstance(tokenizer, KeptTokenizer):  # then this was checked when it was kept
            return
        if tokenizer_digest(open_tokenizer(partial)) != tokenizer_digest(tokenizer):
            raise DataError(
                f"the tokenizer {tokenizer.name_or_path} changes when transformers saves it and opens it "
                "again, so the model would not see the token ids of the rows; set tokenizer_class to "
                "PreTrainedTokenizerFast in its tokenizer_config.json"
            )


def add_chatml_tokens(tokenizer: Any, *, may_add_tokens: bool) -> list[str]:
    """Add the tokens of ChatML that a tokenizer lacks, and return them. Raises ConfigError if that is not allowed."""
    known = tokenizer.get_vocab()
    missing = [token for token in CHATML_TOKENS if token not in known]
    if missing and not may_add_tokens:
        raise ConfigError(
            f"data.chat_template: chatml needs {' and '.join(missing)}, which the tokenizer {tokenizer.name_or_path} "
            "lacks, so the model would never learn to stop; write `chat_template: plain`, which needs no new tokens, "
            "or `resize_embeddings: true` below model, which adds them to the tokenizer and the model"
        )
    return add_tokens(tokenizer, missing)


def tokenizer_folder(config: DataConfig, model_path: str | None) -> Path:
    """Return the folder that the tokenizer is read from."""
    if config.tokenizer is not None and config.tokenizer.path is not None:
        return found_folder(config.tokenizer.path, "data.tokenizer.path")
    if model_path is None:
        raise ConfigError(
            "data.tokenizer: missing, and the model has no path to take it from; "
            "write `tokenizer: {path: FOLDER_OR_HUB_ID}` or `tokenizer: {train: {vocab_size: 4096}}` below data"
        )
    return found_folder(model_path)


def tokenizer_origin(config: DataConfig, model_path: str | None) -> Any:
    """Return what identifies the tokenizer without training or opening it, as JSON."""
    if config.tokenizer is not None and config.tokenizer.train is not None:
        return {"train": config.tokenizer.train.vocab_size, "version": TRAINING_VERSION}
    folder = tokenizer_folder(config, model_path)
    files = [folder / name for name in TOKENIZER_FILES]
    origin = {file.name: sha256_of(file) for file in files if file.is_file()}
    if "tokenizer_class" not in read_settings(folder / "tokenizer_config.json"):
        origin["model_type"] = str(read_settings(folder / CONFIG).get("model_type"))  # it then chooses the class
    return origin


def single_template(template: Any) -> str | None:
    """Return a tokenizer's own template; of several named ones the default."""
    return template.get("default") if isinstance(template, dict) else template


def trained_tokenizer(corpus: Corpus, vocab_size: int, work: Path) -> Any:
    """Return a byte-level BPE trained on a sample of the corpus, or the one trained before on the same bytes."""
    files = [[file.info.sha256, asdict(file.columns)] for file in corpus.files]
    digest = digest_of([TRAINING_VERSION, vocab_size, SAMPLE_BYTES, files])
    folder = work / f"tokenizer-{digest[:32]}"
    if not folder.is_dir():
        tokenizer = train_tokenizer(sample(corpus, SAMPLE_BYTES), vocab_size)
        with whole_folder(folder) as partial:
            tokenizer.save_pretrained(partial)
    return open_tokenizer(folder)


def sample(corpus: Corpus, limit_bytes: int) -> Iterator[str]:
    """Yield cleaned texts: the beginning of each file, the same share of all, so that they are about `limit_bytes`."""
    share = min(1.0, limit_bytes / corpus.bytes)
    cleaner = Cleaner(CleaningConfig())
    for file in corpus.files:
        size = max(1, int(file.info.bytes * share))
        (whole,) = parts_of(0, file, max(file.info.bytes, 1))
        for document in read_part(replace(whole, end=size)):
            if whole.begins_markdown and document.record == 0 and not isinstance(document, Rejected):
                document = cleaner.without_front_matter(document)
            cleaned = document if isinstance(document, Rejected) else cleaner.cleaned(document)
            if not isinstance(cleaned, Rejected):
                yield from (turn.text[:size] for turn in cleaned.turns)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Return a byte-level BPE: no text is unknown to it, and the same texts give the same tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rules = Tokenizer(models.BPE())
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rules.train_from_iterator(texts, trainer)
    log.info(
        "trained a tokenizer of %d tokens on up to %d MiB of the corpus", rules.get_vocab_size(), SAMPLE_BYTES >> 20
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
    tokenizer.chat_template = read_template("chatml", None)
    return tokenizer


def encoder_spec(tokenizer: Any, corpus: Corpus, train_on: TrainOn = "all") -> EncoderSpec:
    """Return what the workers need of a tokenizer. Raises DataError if its template cannot serve the corpus.

    A template that writes the date writes today's.
    """
    controls, tokens, template = control_tokens(tokenizer), tokens_by_role(tokenizer), tokenizer.chat_template
    markers: tuple[str, ...] = ()
    for file in corpus.files:
        if template is None and file.columns.shape == "messages":
            raise DataError(
                f"{file.info.path}: holds conversations, and the tokenizer has no chat template to render them with; "
                "write `chat_template: plain`, `chat_template: chatml` or `chat_template: FILE.jinja` below data"
            )
        layout = file.columns.layout
        if (
            template is None
            and layout is not None
            and (layout.said or {*layout.system, layout.history} & {*file.columns.names})
        ):
            log.warning(
                "%s: no chat template: the system text and earlier turns are put before the prompt, separated by empty "
                "lines",
                file.info.path,
            )
    if template is not None and not corpus.is_text:
        check_template(template, tokens, controls)
        template = dated(template, datetime.date.today())
        added = added_tokens(tokenizer)
        of_turns = turn_tokens(template, tokens, tuple(added))
        markers = tuple(token for token in controls if token not in of_turns)
        controls = tuple(token for token, is_special in added.items() if is_special or token in of_turns)
    return EncoderSpec(
        rules=tokenizer.backend_tokenizer.to_str(),
        vocab_size=vocabulary_size(tokenizer),
        bos=tokenizer.bos_token_id if adds_bos(tokenizer) else None,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        chat_template=template,
        special_tokens=tokens,
        control_tokens=controls,
        marker_tokens=markers,
        train_on=train_on,
    )


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return the special tokens, in the order of their ids."""
    return tuple(token for token, is_special in added_tokens(tokenizer).items() if is_special)


def added_tokens(tokenizer: Any) -> dict[str, bool]:
    """Return the tokens that are matched in a text before all others, by id, each with whether it is special."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return {added[i].content: bool(added[i].special) for i in sorted(added)}


def tokens_by_role(tokenizer: Any) -> dict[str, str]:
    """Return the special tokens by the names that templates use for them."""
    return {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}


def choose_template(tokenizer: Any) -> tuple[str | None, str]:
    """Return the `data.chat_template` for conversations, None for the tokenizer's own, and why."""
    controls, own = control_tokens(tokenizer), single_template(tokenizer.chat_template)
    reason = "the tokenizer has no chat template"
    if own:
        try:
            check_template(own, tokens_by_role(tokenizer), controls)
        except DataError:
            reason = "the tokenizer has a template that does not show what the assistant says"
        else:
            return None, "the tokenizer's own shows what the assistant says"
    if set(CHATML_TOKENS) <= set(controls):
        return "chatml", reason
    return "plain", f"{reason}, and no tokens for ChatML"


def adds_bos(tokenizer: Any) -> bool:
    """Return whether the tokenizer adds its bos token to every text by itself."""
    if isinstance(tokenizer, KeptTokenizer):
        return tokenizer.facts.adds_bos
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
