"""A tokenizer's folder, opened the same way by preparation, training and everything after it.

Part of the contract between preparation and training: one folder gives one class and so the same ids everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.errors import DataError
from cluster.model_files import read_settings, reason_of

GENERIC_CLASSES = {"PreTrainedTokenizerFast", "TokenizersBackend"}  # its names in transformers 4 and 5
TOKENIZER_SIGNS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def open_tokenizer(folder: Path) -> Any:
    """Open a folder's fast tokenizer: by the class that its own files name, else by the model beside it.

    Where the files name the generic class, tokenizer.json is followed as it stands and torch is not imported.
    transformers' AutoTokenizer would let the model's type overrule that: for CodeQwen it builds a Qwen2Tokenizer, which
    drops the spaces from every text. Raises DataError.
    """
    import transformers  # 0.7 s, so only where it is needed

    is_generic = read_settings(folder / "tokenizer_config.json").get("tokenizer_class") in GENERIC_CLASSES
    try:
        if is_generic:
            tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001  # which tokenizers raises for rules that it cannot read
        if folder.is_dir() and not any((folder / name).exists() for name in TOKENIZER_SIGNS):
            raise DataError(f"{folder} has no tokenizer: neither {' nor '.join(TOKENIZER_SIGNS)}") from None
        raise DataError(f"the tokenizer {folder} cannot be read: {reason_of(error)}") from None
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"the tokenizer {folder} has no tokenizer.json; convert it with transformers first")
    return tokenizer


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> list[str]:
    """Add those of `tokens` that a tokenizer lacks as special ones, and return these."""
    known = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in known]
    if missing:
        tokenizer.add_tokens(missing, special_tokens=True)
    return missing


def vocabulary_size(tokenizer: Any) -> int:
    """Return how many rows an embedding needs for every id of a tokenizer; ids may leave gaps."""
    known: int | None = getattr(tokenizer, "vocabulary_size", None)  # of one that was kept
    if known is not None:
        return known
    ids: dict[str, int] = tokenizer.get_vocab()
    return 1 + max(ids.values())
