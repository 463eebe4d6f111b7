"""Documents packed into a row do not see each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from training.batches import position_ids

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ROPE = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
CONFIGS = {
    "llama": ROPE,
    "qwen3": ROPE,
    "gpt2": {**SIZES, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 1},
}
LENGTHS, PADDING = [7, 1, 13, 5], 6


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", CONFIGS)
@torch.inference_mode()
def test_a_packed_document_has_the_logits_that_it_has_alone(model_type: str, attention: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **CONFIGS[model_type])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    rows = torch.randint(2, SIZES["vocab_size"], (2, sum(LENGTHS) + PADDING))
    lengths = [LENGTHS, LENGTHS[::-1]]
    positions = position_ids([np.array(row, dtype=np.int32) for row in lengths], rows.shape[1])
    packed = model(input_ids=rows, position_ids=torch.from_numpy(positions), use_cache=False).logits
    for row, pieces in enumerate(lengths):
        for stop, length in zip(np.cumsum(pieces).tolist(), pieces, strict=True):
            alone = model(input_ids=rows[row : row + 1, stop - length : stop], use_cache=False).logits
            assert (packed[row, stop - length : stop] - alone[0]).abs().max() <= 1e-5
