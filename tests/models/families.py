"""Families of models, each made tiny by its configuration and written as the hub holds it.

`make_family(name, folder)` writes one; both transformers 5 and 4 can run it (a file of its own for 4: it imports
nothing of this project). A family that one of them cannot do says so, with the reason, in its row of the table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

Tensors = dict[str, torch.Tensor]
VOCABULARY = 260
LAYERS = 2
WINDOW = 8  # of attention: shorter than the test's text, so that it matters
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 24,
    "layer_types": ["linear_attention", "full_attention"],
}
WINDOWED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model of `type`; `edit` changes the tensors to how files on the hub hold them.

    `without` says why a version of transformers cannot do the family, by its first number.
    """

    type: str
    config: dict[str, Any]
    edit: Callable[[Tensors], Tensors] = lambda tensors: tensors
    without: dict[int, str] = field(default_factory=dict)


def gpt2_of_the_hub(tensors: Tensors, positions: int = 64) -> Tensors:
    """As openai-community/gpt2: saved without the head, and with the causal masks, once buffers."""
    mask = torch.ones(1, 1, positions, positions).tril()
    masks = {f"h.{n}.attn.bias": mask.clone() for n in range(LAYERS)}
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()} | masks


def pythia_of_the_hub(tensors: Tensors) -> Tensors:
    """As EleutherAI/pythia: a head of another name, masks of truth values, and the frequencies of each layer."""
    for layer in range(LAYERS):
        prefix = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{prefix}.bias"] = torch.ones(64, 64).tril().bool().reshape(1, 1, 64, 64)
        tensors[f"{prefix}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{prefix}.rotary_emb.inv_freq"] = torch.ones(2)
    return {name.replace("lm_head.", "embed_out."): tensor for name, tensor in tensors.items()}


def with_old_frequencies(tensors: Tensors) -> Tensors:
    """As Llama 2 of 2023: each layer's rotary frequencies lie in the file."""
    return tensors | {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(LAYERS)}


def gemma3_of_the_hub(tensors: Tensors) -> Tensors:
    """As google/gemma-3-4b-it: the tower for images under the name that its model once had."""
    whole, short = "vision_tower.vision_model.", "vision_tower."
    return {name if whole in name else name.replace(short, whole): tensor for name, tensor in tensors.items()}


FAMILIES: dict[str, Family] = {
    "llama2": Family(type="llama", config=SIZES, edit=with_old_frequencies),
    "llama3.1": Family(type="llama", config={**GROUPED, "rope_theta": 5e5, "rope_scaling": LLAMA3_SCALING}),
    "llama3.2": Family(
        type="llama",
        config={**GROUPED, "rope_theta": 5e5, "rope_scaling": LLAMA3_SCALING, "tie_word_embeddings": True},
    ),
    "mistral": Family(type="mistral", config={**GROUPED, "sliding_window": WINDOW, "rope_theta": 1e6}),
    "qwen2": Family(type="qwen2", config={**GROUPED, "rope_theta": 1e6, "tie_word_embeddings": True}),
    "qwen3": Family(type="qwen3", config={**GROUPED, "head_dim": 16, "rope_theta": 1e6}),
    "qwen3_moe": Family(type="qwen3_moe", config={**GROUPED, **EXPERTS, "head_dim": 16, "rope_theta": 1e6}),
    "qwen3_next": Family(type="qwen3_next", config={**GROUPED, **EXPERTS, **LINEAR, "head_dim": 16}),
    "mixtral": Family(type="mixtral", config={**GROUPED, "num_local_experts": 4, "sliding_window": None}),
    "deepseek_v3": Family(
        type="deepseek_v3",
        config={
            **SIZES,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 24,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    "gpt_oss": Family(
        type="gpt_oss",
        config={**GROUPED, **WINDOWED, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gemma2": Family(type="gemma2", config={**GROUPED, **WINDOWED, "head_dim": 16}),
    "gemma3_text": Family(
        type="gemma3_text",
        config={**GROUPED, **WINDOWED, "head_dim": 16, "rope_theta": 5e5, "rope_local_base_freq": 5e3},
    ),
    "gemma3": Family(
        type="gemma3",
        config={
            "text_config": {**GROUPED, **WINDOWED, "head_dim": 16, "vocab_size": VOCABULARY, "eos_token_id": 1},
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": 250,
            "boi_token_index": 251,
            "eoi_token_index": 252,
        },
        edit=gemma3_of_the_hub,
    ),
    "phi": Family(type="phi", config={**SIZES, "partial_rotary_factor": 0.25, "rope_theta": 5e4}),
    "phi3": Family(type="phi3", config={**GROUPED, "sliding_window": WINDOW, "pad_token_id": 0}),
    "phi3_long": Family(
        type="phi3",
        config={
            **GROUPED,
            "original_max_position_embeddings": 16,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0]},
            "pad_token_id": 0,
        },
    ),
    "olmo2": Family(type="olmo2", config=GROUPED),
    "smollm3": Family(
        type="smollm3",
        config={**GROUPED, "pad_token_id": 0, "no_rope_layers": [1, 0], "rope_theta": 5e6, "tie_word_embeddings": True},
    ),
    "gpt2": Family(
        type="gpt2",
        config={"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 64},
        edit=gpt2_of_the_hub,
    ),
    "gpt_neox": Family(
        type="gpt_neox", config={**SIZES, "rotary_pct": 0.5, "rotary_emb_base": 2e4}, edit=pythia_of_the_hub
    ),
    "opt": Family(
        type="opt",
        config={
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
        },
    ),
    "bloom": Family(type="bloom", config={"hidden_size": 32, "n_layer": LAYERS, "n_head": 4}),
    "falcon": Family(
        type="falcon",
        config={"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "rope_theta": 2e4},
    ),
    "mpt": Family(
        type="mpt", config={"d_model": 32, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": 64, "expansion_ratio": 2}
    ),
    "stablelm": Family(type="stablelm", config={**GROUPED, "partial_rotary_factor": 0.5, "rope_theta": 2e4}),
    "persimmon": Family(type="persimmon", config={**SIZES, "partial_rotary_factor": 0.25, "rope_theta": 3e4}),
    "glm4": Family(type="glm4", config={**GROUPED, "head_dim": 8, "partial_rotary_factor": 0.25, "pad_token_id": 0}),
    "granite": Family(type="granite", config={**GROUPED, "embedding_multiplier": 2.0, "logits_scaling": 4.0}),
    "granitemoehybrid": Family(
        type="granitemoehybrid",
        config={
            **GROUPED,
            **MAMBA,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 24,
        },
    ),
    "mamba2": Family(
        type="mamba2",
        config={
            "hidden_size": 32,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 1,
            "state_size": 8,
            "num_hidden_layers": LAYERS,
            "expand": 2,
        },
    ),
    "jamba": Family(
        type="jamba",
        config={
            **GROUPED,
            "num_experts": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
            "pad_token_id": 0,
        },
    ),
    "lfm2": Family(type="lfm2", config={**GROUPED, "layer_types": ["conv", "full_attention"], "rope_theta": 1e6}),
    "nemotron_h": Family(
        type="nemotron_h",
        config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "layers_block_type": ["mamba", "attention", "moe"],
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 24,
        },
        without={4: "transformers 4 has no nemotron_h: its files there carry code of their own"},
    ),
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes: no merges, nothing to train."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    rules = Tokenizer(models.BPE(vocabulary, []))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=rules, bos_token="<s>", eos_token="</s>")


def config_of(name: str) -> Any:
    family = FAMILIES[name]
    ours = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
    return AutoConfig.for_model(family.type, **{**({} if "text_config" in family.config else ours), **family.config})


def make_family(name: str, folder: Path) -> Path:
    """Write a model of the family, with random weights of every kind, and a tokenizer; return the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of(name))
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                # about what the model's own rule gives, so that what grows or decays stays finite; nothing is 0 or 1
                tensor.add_(torch.randn(tensor.shape) * (0.15 if tensor.ndim > 1 else 0.05))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file(FAMILIES[name].edit(load_file(path)), path, metadata={"format": "pt"})
    return folder


TEXT = [(7 * place * place + 3 * place) % 250 + 2 for place in range(24)]


@torch.no_grad()
def logits_of(folder: Path) -> torch.Tensor:
    """Return what a user's transformers makes of the folder, in fp32.

    Raises ValueError if it finds less than all, or if the tokenizer makes what the model does not take.
    """
    inputs = AutoTokenizer.from_pretrained(folder)("a text")
    if set(inputs) != {"input_ids", "attention_mask"}:
        raise ValueError(f"{folder}: the tokenizer of transformers {transformers.__version__} makes {sorted(inputs)}")
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    lost = {kind: sorted(names) for kind, names in found.items() if names}
    if lost:
        raise ValueError(f"{folder}: transformers {transformers.__version__} loads it with {lost}")
    logits: torch.Tensor = model.eval()(input_ids=torch.tensor([TEXT]), use_cache=False).logits
    return logits


PROMPTS, ANSWERS = "prompts.json", "answers.json"
ANSWER_TOKENS = 64


def answers_of(folder: Path) -> list[list[int]]:
    """Return what a user's transformers makes of the folder's prompts: their ids and a greedy answer's, in fp32.

    A prompt is the messages of a chat. What ends an answer is the folder's own.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for prompt in json.loads((folder / PROMPTS).read_text(encoding="utf-8")):
        inputs = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        answers.append(model.generate(**inputs, do_sample=False, max_new_tokens=ANSWER_TOKENS)[0].tolist())
    return answers


def main(action: str, *arguments: str) -> None:
    """Run under another version of transformers: `make FOLDER NAME ...`, or `logits` or `answers` and the FOLDERs.

    The last two leave a file in each folder.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    failures = {}
    for argument in arguments[1:] if action == "make" else arguments:
        folder = Path(arguments[0], argument) if action == "make" else Path(argument)
        try:
            if action == "make":
                make_family(argument, folder)
            elif action == "answers":
                (folder / ANSWERS).write_text(json.dumps(answers_of(folder)), encoding="utf-8")
            else:
                save_file({"logits": logits_of(folder).contiguous()}, folder / "logits.safetensors")
        except Exception as error:  # noqa: BLE001  (the other process tells which families failed, and why)
            failures[argument] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    print(json.dumps(failures))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
