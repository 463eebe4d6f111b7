"""Where the files of a model or a tokenizer lie: in a folder here, or in a repository of the Hub.

Part of the contract between preparation and training, for both must open the same files. Imports no torch.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError

MODEL_KEY = "model.path"
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
SMALL_FILES = ["*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]  # all but the weights
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")  # one of them is a tokenizer
BLOCK, BLOCKS = 1 << 16, 256  # of each file of weights, for a digest
IN_FOLDERS = ["*/*"]  # `original/`, `onnx/` and the like: the same weights for other programs
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
HUB_TIMEOUT_S = 1.5  # until a hub that does not answer counts as out of reach; the HTTP library asks twice


def found_folder(path: str, key: str = MODEL_KEY, *, weights: bool = False) -> Path:
    """Return the folder that `path` names, fetched from the Hub unless it lies here; `key` is where it was written.

    From the Hub come the small files, and with `weights` those that transformers would load. What an earlier call has
    fetched is used as it is, so that a run sees one model from its preparation to its export.
    Raises ConfigError, within seconds, if there is no such folder or repository.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ConfigError(f"{key}: {path} is a file; name the folder that holds the model's {CONFIG}")
    if looks_local(path):
        raise ConfigError(f"{key}: {path!r} is no folder here; {what_is_near(folder)}")
    if not HUB_NAME.fullmatch(path):
        raise ConfigError(f"{key}: {path!r} is neither a folder here nor a name of the Hub, which are like OWNER/NAME")
    cached = cached_folder(path, weights=weights)
    return fetched_folder(path, key, weights=weights) if cached is None else cached


def looks_local(path: str) -> bool:
    """Return whether a path can only be meant for a folder here, not for a repository of the Hub."""
    return path.startswith(("/", ".", "~")) or path.endswith("/") or path.count("/") > 1


def what_is_near(folder: Path) -> str:
    """Return what there is instead of a folder that is not there, for a message."""
    missing = folder
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    there = sorted(other.name for other in missing.parent.iterdir() if other.is_dir())
    if near := difflib.get_close_matches(missing.name, there, n=1):
        return f"did you mean {missing.parent / near[0]}?"
    return f"{missing.parent.absolute()} has {', '.join(there[:6]) or 'no folders'}{' ...' if len(there) > 6 else ''}"


def no_folder(name: str) -> str:
    """Return the beginning of a message about a repository of the Hub that may have been meant for a folder here."""
    path = Path(name)
    is_likely = path.parent != Path() and path.parent.is_dir()
    return f"{name} is no folder here ({what_is_near(path)})" if is_likely else f"{name} is no folder here"


def cached_folder(name: str, *, weights: bool = False) -> Path | None:
    """Return the folder of a repository that was fetched before, if it holds what is asked for; no network is used."""
    from huggingface_hub import snapshot_download  # 0.4 s

    try:
        folder = Path(snapshot_download(name, allow_patterns=[CONFIG], local_files_only=True))
    except (OSError, ValueError):  # nothing of it, or not all
        return None
    has_tokenizer = any((folder / file).is_file() for file in VOCABULARIES)
    has_weights = not weights or all((folder / file).is_file() for file in weight_files(folder))
    return folder if has_tokenizer and has_weights else None


def fetched_folder(name: str, key: str, *, weights: bool) -> Path:
    """Return the folder of a repository after fetching it."""
    from huggingface_hub import snapshot_download

    require_weights(files_on_hub(name, key), name, key)
    try:
        folder = Path(snapshot_download(name, allow_patterns=SMALL_FILES, ignore_patterns=IN_FOLDERS))
        if weights:
            snapshot_download(name, allow_patterns=weight_files(folder), ignore_patterns=IN_FOLDERS)
    except Exception as error:  # noqa: BLE001  # the HTTP library's own, and another library in each version
        raise ConfigError(
            f"{key}: {name} could not be fetched from the Hub: {reason_of(error)}; run the command again, what has "
            "been fetched is kept"
        ) from None
    return folder


def files_on_hub(name: str, key: str) -> set[str]:
    """Return the names of a repository's files. Raises ConfigError if the Hub does not have it, or does not answer."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    fetch = f"fetch it where there is a network (`hf download {name}`) and set HF_HOME to where it is kept"
    elsewhere = f"name a folder, or {fetch}"
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"{key}: {no_folder(name)}, it was never fetched, and HF_HUB_OFFLINE is set; {elsewhere}")
    try:
        siblings = HfApi().model_info(name, timeout=HUB_TIMEOUT_S).siblings or []
    except HfHubHTTPError as error:
        raise ConfigError(f"{key}: {no_folder(name)}, and the Hub says: {reason_of(error)}") from None
    except Exception as error:  # noqa: BLE001  # as above
        reason = reason_of(error)
        raise ConfigError(f"{key}: {no_folder(name)}, and the Hub cannot be reached ({reason}); {elsewhere}") from None
    return {file.rfilename for file in siblings}


def require_weights(names: set[str], name: str, key: str) -> None:
    """Raise ConfigError if a repository that a model is to come from has no weights that can be read."""
    if key == MODEL_KEY and not names & {WEIGHTS, WEIGHTS_INDEX}:
        others = sorted(file for file in names if file.endswith((".bin", ".gguf", ".pth", ".h5", ".safetensors")))
        has = f"only {', '.join(others[:3])}" if others else "no weights at all"
        raise ConfigError(
            f"{key}: {name} of the Hub has no {WEIGHTS}, {has}; fetch it, save it with transformers' save_pretrained, "
            "and name that folder"
        )


def reason_of(error: Exception) -> str:
    """Return the first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "Request ID" not in line), type(error).__name__)


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that transformers reads a model's weights from, whether or not they are here.

    Other files in the folder are not for it: Mistral's consolidated.safetensors, adapters and other formats hold the
    same weights under other names, or another model's. Raises ConfigError if the index is damaged.
    """
    index = folder / WEIGHTS_INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():  # the single file first, as transformers looks for them
        return [WEIGHTS]
    names = read_settings(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ConfigError(f"{index}: has no weight_map of file names; fetch it again")
    return sorted(set(names.values()))


def read_settings(path: Path) -> dict[str, Any]:
    """Return a JSON file's values, none if there is no such file. Raises ConfigError if it is no JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}); fetch it again") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}, not a JSON object; fetch it again")
    return values


def weights_digest(folder: Path) -> str:
    """Return a digest of a folder's weights that changes when they are written again from another checkpoint.

    Of each file its name, its size and blocks spread evenly over it, so that a large model is not read as a whole.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            for start in range(0, size, max(BLOCK, size // BLOCKS)):
                stream.seek(start)
                digest.update(stream.read(BLOCK))
    return digest.hexdigest()
