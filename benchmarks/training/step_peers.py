"""The steps of `step` by others: Trainers with ZeRO-3 (transformers', TRL's), a bare DDP loop, one without other ranks.

TRL is not among Shardline's dependencies:

    pip install --target build/peers --no-deps trl==1.16.0
    export PYTHONPATH=$PWD:$PWD/build/peers
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from benchmarks.training.step_work import LEARNING_RATE, Job, Shape, Taken, batch_of, labels_of
from cluster.network.world import World


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
    import torch
    import transformers

    class Rows(torch.utils.data.Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return job.world.size * job.steps * job.shape.rows

        def __getitem__(self, index: int) -> dict[str, Any]:
            number, row = divmod(index, job.shape.rows)
            batch = batch_of(job.shape, number)
            labels = labels_of(batch)[row]
            return {"input_ids": batch.input_ids[row], "position_ids": batch.position_ids[row], "labels": labels}

    model = plain_model(job.shape)  # before the arguments: they let transformers cut what is made after them
    arguments = transformers.TrainingArguments(**settings(job, zero))
    tell_of_ranks(arguments, job.world)
    train(taken, transformers.Trainer, model=model, args=arguments, train_dataset=Rows())


def trl(job: Job, taken: Taken) -> None:
    """TRL's SFTTrainer with the same ZeRO-3, on the same rows as its own packing would give them.

    Its head computes the loss in chunks, of trained tokens alone; it logs accuracy and entropy besides.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

    def rows() -> Iterator[dict[str, list[int]]]:
        for number in range(job.world.size * job.steps):
            batch = batch_of(job.shape, number)
            assert len(batch.input_ids) == 1, "the documents of several rows are not told apart here"
            ids, labels = batch.input_ids[0].tolist(), labels_of(batch)[0].tolist()
            yield {"input_ids": ids, "labels": labels, "seq_lengths": batch.segments}

    model = plain_model(job.shape)
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="</s>"))
    arguments = SFTConfig(
        packing=True,
        max_length=job.shape.row_tokens,
        dataset_kwargs={"skip_prepare_dataset": True},  # the rows are packed already
        gradient_checkpointing=False,
        **settings(job, {}),
    )
    tell_of_ranks(arguments, job.world)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>")
    data = Dataset.from_list([*rows()])
    train(taken, SFTTrainer, model=model, args=arguments, train_dataset=data, processing_class=tokenizer)


def settings(job: Job, zero: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a Trainer, with ZeRO-3 but for the keys of `zero`."""
    import deepspeed
    import transformers

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled: minutes, not what is asked
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True  # it believes that bf16 needs a GPU
    return {
        "output_dir": "runs/peer",
        "max_steps": job.steps,
        "per_device_train_batch_size": job.shape.rows,
        "learning_rate": LEARNING_RATE,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "bf16": job.precision == "bf16",
        "deepspeed": {
            **ZERO3,
            "zero_optimization": {**ZERO3["zero_optimization"], **zero},
            "train_micro_batch_size_per_gpu": job.shape.rows,
            "bf16": {"enabled": job.precision == "bf16"},
        },
        "optim": "adamw_torch_fused",
        "disable_tqdm": True,
    }


def tell_of_ranks(arguments: Any, world: World) -> None:
    """Tell accelerate of the ranks: on CPUs with DeepSpeed it sees one process, and gives every rank the same rows."""
    state = arguments.distributed_state
    state.num_processes, state.process_index, state.local_process_index = world.size, world.rank, world.local_rank


def train(taken: Taken, kind: Any, **given_to_it: Any) -> None:
    """Train with a Trainer class, and note the losses and times of its steps."""
    import torch
    import transformers

    if not torch.cuda.is_available():
        torch.set_num_threads(1)

    class InOrder(kind):  # type: ignore[misc]
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

    trainer = InOrder(callbacks=[Clock()], **given_to_it)
    if trainer.accelerator.num_processes != torch.distributed.get_world_size():
        raise RuntimeError("void: the Trainer does not deal its rows to the ranks")
    trainer.train()
