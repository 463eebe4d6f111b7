"""The tokenizer of the data: the model's, another one's, or one trained on the corpus."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError, DataError
from cluster.files import digest_of, sha256_of, whole_folder
from data_prep.cleaning import Cleaner
from data_prep.config import CleaningConfig, DataConfig
from data_prep.conversations import check_template, read_template
from data_prep.documents import Rejected, read_part
from data_prep.encoding import EncoderSpec
from data_prep.sources import Corpus, parts_of

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = [END_OF_TEXT, "<|im_start|>", "<|im_end|>"]
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
GENERIC_CLASSES = {"PreTrainedTokenizerFast", "TokenizersBackend"}


def load_tokenizer(config: DataConfig, model_path: str | None, corpus: Corpus, work: Path) -> Any:
    """Return the data's tokenizer, its chat template and pad token set.

    A trained one is kept in `work` under a digest of what it was trained on. Raises ConfigError if none is named,
    DataError if it cannot be used, or if the corpus has conversations and there is no template for them.
    """
    if config.tokenizer is not None and config.tokenizer.train is not None:
        tokenizer = trained_tokenizer(corpus, config.tokenizer.train.vocab_size, work)
    else:
        tokenizer = open_tokenizer(tokenizer_path(config, model_path))
    tokenizer.chat_template = read_template(config.chat_template, single_template(tokenizer.chat_template))
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"the tokenizer {tokenizer_path(config, model_path)} has no eos token, so no document would have an end; "
            "set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_path(config: DataConfig, model_path: str | None) -> str:
    """Return the folder or hub id that the tokenizer is read from."""
    path = config.tokenizer.path if config.tokenizer is not None else model_path
    if path is None:
        raise ConfigError(
            "data.tokenizer: missing, and the model has no path to take it from; "
            "write `tokenizer: {path: FOLDER_OR_HUB_ID}` or `tokenizer: {train: {vocab_size: 4096}}` below data"
        )
    return path


def tokenizer_origin(config: DataConfig, model_path: str | None) -> Any:
    """Return what identifies the tokenizer without training it, as JSON."""
    if config.tokenizer is not None and config.tokenizer.train is not None:
        return {"train": config.tokenizer.train.vocab_size, "version": TRAINING_VERSION}
    path = tokenizer_path(config, model_path)
    files = [Path(path) / name for name in TOKENIZER_FILES]
    if any(file.is_file() for file in files):  # quicker than to open it: 0.7 s of imports
        return {file.name: sha256_of(file) for file in files if file.is_file()}
    tokenizer = open_tokenizer(path)
    return [tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map, tokenizer.chat_template]


def open_tokenizer(path: str) -> Any:
    """Open a folder's or hub id's fast tokenizer, without torch where its class is the generic one."""
    import transformers  # 0.7 s, so only where it is needed

    settings = Path(path) / "tokenizer_config.json"
    is_generic = settings.is_file() and json.loads(settings.read_bytes()).get("tokenizer_class") in GENERIC_CLASSES
    try:
        loader = transformers.PreTrainedTokenizerFast if is_generic else transformers.AutoTokenizer
        tokenizer = loader.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise DataError(f"the tokenizer {path} cannot be read: {first_line(error)}") from None
    if not tokenizer.is_fast:
        raise DataError(f"the tokenizer {path} has no tokenizer.json; convert it with transformers first")
    return tokenizer


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


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
    return open_tokenizer(str(folder))


def sample(corpus: Corpus, limit_bytes: int) -> Iterator[str]:
    """Yield cleaned texts: of each file its first part, in the proportion that the limit is to the corpus."""
    share = min(1.0, limit_bytes / corpus.bytes)
    cleaner = Cleaner(CleaningConfig())
    for file in corpus.files:
        size = max(1, int(file.info.bytes * share))
        (whole,) = parts_of(0, file, max(file.info.bytes, 1))
        for document in read_part(replace(whole, end=size)):
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


def encoder_spec(tokenizer: Any, corpus: Corpus) -> EncoderSpec:
    """Return what the workers need of a tokenizer. Raises DataError if its template cannot serve the corpus."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    controls = tuple(added[i].content for i in sorted(added) if added[i].special)
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    template = tokenizer.chat_template
    for file in corpus.files:
        if template is None and file.columns.shape == "messages":
            raise DataError(
                f"{file.info.path}: holds conversations, and the tokenizer has no chat template to write them with; "
                "write `chat_template: chatml` or `chat_template: FILE.jinja` below data"
            )
    if template is not None and not corpus.is_text:
        check_template(template, tokens, controls)
    return EncoderSpec(
        rules=tokenizer.backend_tokenizer.to_str(),
        vocab_size=len(tokenizer),
        bos=tokenizer.bos_token_id if adds_bos(tokenizer) else None,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        chat_template=template,
        special_tokens=tokens,
        control_tokens=controls,
    )


def adds_bos(tokenizer: Any) -> bool:
    """Tell whether the tokenizer begins every text with its bos token by itself."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
