"""Stands in for llama.cpp's convert_hf_to_gguf.py: a Llama as a GGUF file, by the same library, bf16 or f32 only.

As a program: MODEL --outfile FILE --outtype TYPE. The variable FAULT names a fault of a converter.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map

parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("--outfile", type=Path)
parser.add_argument("--outtype")
options = parser.parse_args()
fault = os.environ.get("FAULT", "")
if fault == "unknown":
    print("ERROR:hf-to-gguf:Model LlamaForCausalLM is not supported", file=sys.stderr)  # noqa: T201
    sys.exit(1)
config = json.loads((options.model / "config.json").read_text())
tokenizer = json.loads((options.model / "tokenizer.json").read_text())
vocab = {**tokenizer["model"]["vocab"], **{token["content"]: token["id"] for token in tokenizer["added_tokens"]}}
writer = GGUFWriter(options.outfile, "llama")
writer.add_block_count(config["num_hidden_layers"])
writer.add_tokenizer_model("llama")
writer.add_token_list(sorted(vocab, key=vocab.__getitem__)[: -1 if fault == "tokens" else None])
writer.add_token_scores([-1000.0] * len(vocab))
writer.add_eos_token_id(0 if fault == "end" else config["eos_token_id"])
if fault == "template":
    writer.add_chat_template("{{ messages }}")
names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
content = (options.model / "model.safetensors").read_bytes()
start = 8 + int.from_bytes(content[:8], "little")
header = json.loads(content[8:start])
for name in header.keys() - {"__metadata__"}:
    first, last = (start + offset for offset in header[name]["data_offsets"])
    tensor = np.frombuffer(content[first:last], np.uint16).reshape(header[name]["shape"])  # the bits of bf16
    if "q_proj" in name:  # as llama.cpp permutes the rows of queries
        tensor = tensor[::-1].copy()
    if fault == "values" and "down_proj" in name:
        tensor = tensor + 1
    is_bf16 = options.outtype == "bf16" and tensor.ndim == 2
    data = tensor.view(np.uint8) if is_bf16 else (tensor.astype(np.uint32) << 16).view(np.float32)
    kind = GGMLQuantizationType.BF16 if is_bf16 else None
    writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data, raw_dtype=kind)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
