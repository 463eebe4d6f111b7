"""An export as one GGUF file, for llama.cpp, Ollama and LM Studio: by llama.cpp's own converter, then compared with it.

The converter is a script in llama.cpp's repository that knows each architecture. It is run as a program of its own. Its
file is read back with the gguf package: tokens, chat template, end token, and every matrix that is stored one to one.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from cluster.errors import CheckpointError, ClusterError, ConfigError
from cluster.model_files import ADAPTER_CONFIG, CONFIG, read_settings, weight_files
from data_prep.shards.tokenizer_files import open_tokenizer
from training.models.stop_tokens import stop_token_ids

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

CONVERTER = "convert_hf_to_gguf.py"
OWN_TYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}  # of an export's precision: nothing is rounded
INSTALL = f"""git clone --depth 1 https://github.com/ggml-org/llama.cpp
  pip install -e '.[gguf]'
  shardline export RUN.yaml --gguf --converter llama.cpp/{CONVERTER}"""


def find_converter(named: Path | None) -> Path:
    """Return llama.cpp's converter: the script or checkout that was named, else the script on PATH.

    Raises ConfigError, with the commands that install it, if there is none.
    """
    if named is not None:
        path = named / CONVERTER if named.is_dir() else named
        if not path.is_file():
            raise ConfigError(f"--converter {named}: no {CONVERTER} there; name llama.cpp's checkout or the script")
        return path.absolute()
    on_path = shutil.which(CONVERTER)
    if on_path is None:
        raise ConfigError(
            f"--gguf: llama.cpp's {CONVERTER} is not on PATH; GGUF files are written by it. Type:\n  {INSTALL}"
        )
    return Path(on_path).absolute()


def require_gguf() -> None:
    """Raise ClusterError if the package that reads GGUF files is not installed: an unread file is not published."""
    if importlib.util.find_spec("gguf") is None:
        raise ClusterError("--gguf: the package gguf is not installed: pip install -e '.[gguf]'")


def write_gguf(export: Path, path: Path, kind: str, converter: Path) -> dict[str, Any]:
    """Write an export as a GGUF file with weights of a type, and check it; return what the record says of it.

    Raises ConfigError with the converter's own words if it refuses, CheckpointError if the file is not the export.
    """
    if (export / ADAPTER_CONFIG).is_file():
        raise ConfigError(
            "--gguf: the export holds an adapter alone; set export.lora: merged and run `shardline export RUN.yaml`"
        )
    run_converter(converter, export, path, kind)
    return {"kind": f"gguf-{kind}", "type": kind, "converter": converter.name, **check(export, path, kind)}


def own_type(export: Path) -> str:
    """Return the GGUF type with the precision of an export."""
    return OWN_TYPES[str(read_settings(export / CONFIG).get("dtype"))]


def run_converter(converter: Path, export: Path, path: Path, kind: str) -> None:
    """Run the converter. Raises ConfigError with its last words if it fails."""
    command = [sys.executable, str(converter), str(export), "--outfile", str(path), "--outtype", kind]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    if result.returncode or not path.is_file():
        raise ConfigError(
            f"--gguf: llama.cpp's converter refused the export (exit code {result.returncode}): {reason(lines)}"
        )


def reason(lines: list[str]) -> str:
    """Return the line of a program's output that says why it ended."""
    if lines and lines[-1].startswith("ModuleNotFoundError"):
        return f"{lines[-1]}: pip install -e '.[gguf]', or what llama.cpp's requirements.txt asks for"
    told = [line for line in lines if line.startswith(("ERROR:", "NotImplementedError", "ValueError"))]
    last = (told or lines or ["it said nothing"])[-1]
    unknown = "its tokenizer is of no published family, so llama.cpp cannot split text as it does: "
    return unknown + last if "get_vocab_base_pre" in last or "pre-tokenizer" in last else last


def check(export: Path, path: Path, kind: str) -> dict[str, Any]:
    """Compare a GGUF file with the export; return how many tensors and tokens were compared. Raises CheckpointError."""
    from gguf import GGUFReader

    write_scores(export, path)
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tokens = check_tokens(export, path, fields)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    same = check_tensors(export, path, fields, tensors, kind)
    return {"tensors": len(tensors), "tensors_compared": same, "tokens": tokens}


def write_scores(export: Path, path: Path) -> None:
    """Give the tokens of a SentencePiece vocabulary the scores by which llama.cpp merges them.

    tokenizer.json has a list of merges instead, so the converter writes one score for all, and llama.cpp would split
    some words into other tokens than those of training. A token's score is the rank of its first merge, negated, as in
    SentencePiece's own files.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path, "r+")
    kind, scores = reader.get_field("tokenizer.ggml.model"), reader.get_field("tokenizer.ggml.scores")
    model = json.loads((export / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    if kind is None or kind.contents() != "llama" or scores is None or not model.get("merges"):
        return
    ranks: dict[int, int] = {}
    order: list[int] = []
    for rank, merge in enumerate(model["merges"]):
        token = model["vocab"]["".join(merge if isinstance(merge, list) else merge.split(" "))]
        order.append(ranks.setdefault(token, rank))
    if len({scores.parts[scores.data[token]][0] for token in ranks}) > 1:
        return  # the converter knows them
    for token, rank in ranks.items():
        scores.parts[scores.data[token]][0] = -float(rank)
    reader.data.flush()
    if order != sorted(order):
        log.warning(
            "%s: llama.cpp may split some words into other tokens than in training: its merges have one score"
            " for a token, this tokenizer's have several",
            path.name,
        )


def check_tokens(export: Path, path: Path, fields: dict[str, Any]) -> int:
    """Compare tokens, chat template and end token; return the number of tokens."""
    tokenizer, tokens = open_tokenizer(export), fields.get("tokenizer.ggml.tokens") or []
    if fields.get("tokenizer.chat_template") != tokenizer.chat_template:
        raise CheckpointError(f"{path}: has another chat template than the export; update llama.cpp, or report it")
    ours = {**tokenizer.get_vocab(), **{token.content: i for i, token in tokenizer.added_tokens_decoder.items()}}
    wrong = [token for token, i in ours.items() if i >= len(tokens) or not is_token(tokens[i], token)]
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if wrong_added := sorted(added.intersection(wrong)):
        raise CheckpointError(f"{path}: lacks the export's token {wrong_added[0]!r}; update llama.cpp, or report it")
    if wrong:
        raise CheckpointError(
            f"{path}: {len(wrong)} of {len(ours)} tokens differ, such as {wrong[0]!r}; update llama.cpp, or report it"
        )
    ends = {fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    if not ends.intersection(stop_token_ids(tokenizer)):
        log.warning(
            "%s: ends answers with token %s, the model was trained to end them with %s: add that as a stop word",
            path.name,
            fields.get("tokenizer.ggml.eos_token_id"),
            tokenizer.convert_ids_to_tokens(list(stop_token_ids(tokenizer))),
        )
    return len(tokens)


def is_token(stored: str, token: str) -> bool:
    """Return whether a stored token is this one: some converters write added tokens as they are decoded."""
    return stored == token or stored == token.replace("\u2581", " ")


def check_tensors(export: Path, path: Path, fields: dict[str, Any], tensors: dict[str, Any], kind: str) -> int:
    """Compare every matrix that is stored one to one; return how many. Raises CheckpointError if one differs."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    name = fields["general.architecture"]
    arch = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == name)
    names = get_tensor_name_map(arch, int(fields[f"{name}.block_count"]))
    compared, elements = 0, 0
    for key, exported in export_tensors(export):
        elements += exported.numel()
        mapped = names.get_name(key, try_suffixes=(".weight", ".bias"))
        stored = tensors.get(mapped or "")
        if stored is None or exported.dim() != 2 or int(stored.n_elements) != exported.numel():
            continue  # merged with others, such as the experts of a layer, or changed, as some norms are
        if not is_same(stored, exported, kind):
            raise CheckpointError(f"{path}: {mapped} does not hold the values of the export's {key}; please report it")
        compared += 1
    stored_elements = sum(int(tensor.n_elements) for name, tensor in tensors.items() if not name.startswith("rope_"))
    if "token_embd.weight" not in tensors or not compared:
        raise CheckpointError(f"{path}: none of its tensors could be compared with the export; please report it")
    if stored_elements != elements:
        log.warning("%s: holds %s values, the export %s; try it before use", path.name, stored_elements, elements)
    return compared


def export_tensors(export: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and values of every tensor of an export, one in memory at a time."""
    for file in weight_files(export):
        with safe_open(export / file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                yield name, stored.get_tensor(name)


def is_same(stored: Any, exported: torch.Tensor, kind: str) -> bool:
    """Return whether a stored tensor has the values of an exported one, rounded to its type, in any order.

    The rows of queries and keys may be permuted, as llama.cpp rotates other pairs. Then both are sorted: where a
    permutation brings each value within a distance of its own, sorting does too.
    """
    from gguf.quants import dequantize

    values: Array = np.asarray(dequantize(stored.data, stored.tensor_type), dtype=np.float32).reshape(-1)
    wanted, tolerance = expected(exported, stored.tensor_type.name.lower())
    if kind != "q8_0" and stored.tensor_type.name.lower() not in (kind, "f32"):
        return False
    if values.size != wanted.size or not np.isfinite(values).all():
        return False
    if np.abs(values - wanted).max() <= tolerance:
        return True
    return bool(np.abs(np.sort(values) - np.sort(wanted)).max() <= tolerance)


def expected(exported: torch.Tensor, kind: str) -> tuple[Array, float]:
    """Return the values rounded to a type, in fp32, and how far the stored ones may be from them."""
    dtypes = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    rounded = exported.to(dtypes.get(kind, torch.float32)).float().reshape(-1).numpy()
    step = float(np.abs(rounded).max()) / 127 if kind == "q8_0" else 0.0
    return rounded, step * 0.51 + step * 127 * 2**-11  # half a step, and the scale's own rounding to fp16
