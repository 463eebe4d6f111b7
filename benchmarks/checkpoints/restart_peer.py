"""The peer of `resume` and `coldstart`: transformers' Trainer with DeepSpeed ZeRO-3, one rank of it.

    python -m benchmarks.checkpoints.restart_peer FOLDER MODEL_JSON ROW_TOKENS STEPS RESUME

It touches FOLDER/first when the first step of this start is done. Needs accelerate.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ZERO3 = {
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 3, "overlap_comm": True, "contiguous_gradients": True},
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


def main(folder: str, model_json: str, row_tokens: str, steps: str, resume: str) -> None:
    """Train so many steps, saving after the third."""
    import deepspeed
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainerCallback, TrainingArguments

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled: minutes, not what is asked
    torch.set_num_threads(1)

    class First(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *given: object, **named: object) -> None:
            (Path(folder) / "first").touch()

    class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            generator = torch.Generator().manual_seed(index)
            ids = torch.randint(0, 256, (int(row_tokens),), generator=generator)
            return {"input_ids": ids, "labels": ids}

    arguments = TrainingArguments(
        output_dir=str(Path(folder) / "peer"),
        max_steps=int(steps),
        per_device_train_batch_size=1,
        save_steps=3,
        save_strategy="steps",
        logging_steps=1,
        report_to=[],
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        deepspeed=ZERO3,
        optim="adamw_torch_fused",
    )
    model = AutoModelForCausalLM.from_config(LlamaConfig(**json.loads(model_json)))
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[First()])
    trainer.train(resume_from_checkpoint=resume == "resume" or None)


if __name__ == "__main__":
    main(*sys.argv[1:])
