"""One rank of plain DeepSpeed that trains a random Llama for one step and saves it: `native_checkpoint SIZE OUTPUT`."""

from __future__ import annotations

import sys
from typing import Any

SIZES = {  # parameters: hidden size, layers, width of the MLP
    "50M": (512, 8, 1408),
    "200M": (1024, 12, 2816),
    "500M": (1536, 14, 4096),
}
VOCABULARY = 32_000


def llama(size: str) -> Any:
    from transformers import LlamaConfig

    hidden, layers, width = SIZES[size]
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=width,
        num_attention_heads=hidden // 64,
        tie_word_embeddings=False,  # zero_to_fp32 writes no safetensors of tied ones
    )


def main(size: str, output: str) -> None:
    import deepspeed
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}
    torch.manual_seed(0)
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = LlamaForCausalLM(llama(size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    ids = torch.arange(8).reshape(1, 8)
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()
    engine.save_checkpoint(output)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
