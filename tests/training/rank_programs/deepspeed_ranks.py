"""One rank of plain DeepSpeed, without anything of ours: two small models are trained for three steps and saved.

    python tests/training/rank_programs/deepspeed_ranks.py OUTPUT MODEL

OUTPUT/NAME is what DeepSpeed saves, OUTPUT/NAME.safetensors what it says its state is, gathered by its own functions.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from safetensors.torch import save_file
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

STEPS = 3
ODD = {"vocab_size": 67, "n_embd": 5, "n_layer": 2, "n_head": 1, "n_positions": 32}  # parts of 3 and 2 elements


def trained(model_class: Any, config: Any, *, bf16: bool, sub_group_size: int) -> Any:
    """Train a model whose vectors do not decay and have a rate of their own."""
    ds_config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "sub_group_size": sub_group_size},
        "bf16": {"enabled": bf16},
    }
    with deepspeed.zero.Init(config_dict_or_path=ds_config):
        model = model_class(config)  # imported before: not even torch can be imported under zero.Init
    model.tie_weights()
    matrices = [parameter for parameter in model.parameters() if len(parameter.ds_shape) >= 2]
    vectors = [parameter for parameter in model.parameters() if len(parameter.ds_shape) < 2]
    groups = [{"params": matrices, "lr": 1e-2, "weight_decay": 0.1}, {"params": vectors, "lr": 5e-3}]
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups), config=ds_config)
    for step in range(STEPS):
        ids = (torch.arange(16).reshape(1, 16) * (step + 2) + dist.get_rank()) % 60
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    return engine


def save(engine: Any, output: Path, name: str) -> None:
    engine.save_checkpoint(str(output / name), client_state={"notes": {"of": output}})  # a class torch does not know
    state = {}
    for key, parameter in engine.module.named_parameters():
        state[f"master.{key}"] = safe_get_full_fp32_param(parameter)
        for kind in ("exp_avg", "exp_avg_sq"):
            state[f"{kind}.{key}"] = safe_get_full_optimizer_state(parameter, kind)
    if dist.get_rank() == 0:
        save_file({key: tensor.clone().contiguous() for key, tensor in state.items()}, output / f"{name}.safetensors")


def main(output: str, model: str) -> None:
    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    torch.manual_seed(0)
    tied = GPT2Config(**ODD, bos_token_id=0, eos_token_id=1, tie_word_embeddings=True)
    save(trained(GPT2LMHeadModel, tied, bf16=True, sub_group_size=300), Path(output), "bf16")
    save(
        trained(LlamaForCausalLM, AutoConfig.from_pretrained(model), bf16=False, sub_group_size=10**9),
        Path(output),
        "fp32",
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
