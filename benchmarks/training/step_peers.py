"""The steps of `step` by others: transformers' Trainer with ZeRO-3, a bare DDP loop, and one without other ranks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from benchmarks.training.step_work import LEARNING_RATE, Job, Shape, Taken, batch_of, labels_of


def plain_model(shape: Shape) -> Any:
    """Return the model with the first weights that our engine has."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from training.models.new_weights import NewWeights
    from training.models.source import skeleton_of

    config = LlamaConfig(**shape.config)
    weights = NewWeights(skeleton_of(config), seed=0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            part = weights.part(name, tuple(parameter.shape), 0, parameter.numel())
            parameter.copy_(part.reshape(parameter.shape))
    return model


def ddp(job: Job, taken: Taken) -> None:
    """A bare loop: DistributedDataParallel, fused AdamW, the model's own loss; bf16 is torch's autocast."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    model = plain_model(job.shape)
    loop(job, taken, model, torch.nn.parallel.DistributedDataParallel(model))


def bare(job: Job, taken: Taken) -> None:
    """The same without gradients of other ranks: what the model and the optimizer take by themselves."""
    model = plain_model(job.shape)
    loop(job, taken, model, model)


def loop(job: Job, taken: Taken, model: Any, called: Any) -> None:
    """Take steps on a model; `called` is what its forward pass goes through."""
    import torch

    torch.set_num_threads(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step_of(batch: Any) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bf16"):
            loss = called(
                input_ids=batch.input_ids, position_ids=batch.position_ids, labels=labels_of(batch), use_cache=False
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    for step in range(job.steps):
        batch = job.batch(step)
        taken.time(lambda: step_of(batch))  # noqa: B023


ZERO3: dict[str, Any] = {
    "zero_optimization": {"stage": 3, "overlap_comm": True, "contiguous_gradients": True},
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


def trainer(job: Job, taken: Taken, zero: Mapping[str, Any] = MappingProxyType({})) -> None:
    """transformers' Trainer with DeepSpeed's ZeRO-3 as it is configured by default, on the same rows with positions.

    `zero` are keys of `zero_optimization` that differ from that.
    """
    import deepspeed
    import torch
    import transformers

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled: minutes, not what is asked
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    model = plain_model(job.shape)  # before the arguments: they let transformers cut what is made after them
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True  # it believes that bf16 needs a GPU

    class Rows(torch.utils.data.Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return job.world.size * job.steps * job.shape.rows

        def __getitem__(self, index: int) -> dict[str, Any]:
            number, row = divmod(index, job.shape.rows)
            batch = batch_of(job.shape, number)
            labels = labels_of(batch)[row]
            return {"input_ids": batch.input_ids[row], "position_ids": batch.position_ids[row], "labels": labels}

    class InOrder(transformers.Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *given: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, *given: Any, **named: Any) -> Any:
            loss = super().training_step(*given, **named)
            taken.losses.append(float(loss))
            return loss

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *given: Any, **named: Any) -> None:
            self.begun = time.perf_counter(), time.process_time()

        def on_step_end(self, *given: Any, **named: Any) -> None:
            taken.wall_s.append(time.perf_counter() - self.begun[0])
            taken.cpu_s.append(time.process_time() - self.begun[1])

    arguments = transformers.TrainingArguments(
        output_dir="runs/peer",
        max_steps=job.steps,
        per_device_train_batch_size=job.shape.rows,
        learning_rate=LEARNING_RATE,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        bf16=job.precision == "bf16",
        deepspeed={
            **ZERO3,
            "zero_optimization": {**ZERO3["zero_optimization"], **zero},
            "train_micro_batch_size_per_gpu": job.shape.rows,
            "bf16": {"enabled": job.precision == "bf16"},
        },
        optim="adamw_torch_fused",
        disable_tqdm=True,
    )
    InOrder(model=model, args=arguments, train_dataset=Rows(), callbacks=[Clock()]).train()
