"""One rank of `step`: the same packed rows in our step, in transformers' Trainer with ZeRO-3 and in a plain DDP loop.

    python -m benchmarks.step_ranks VARIANT OUTPUT SHAPE PRECISION STEPS

It writes OUTPUT-RANK.json: loss, seconds and CPU-seconds of each step, and peak memory.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.environment import World, enter_world, read_world


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama, and the packed rows that it is given."""

    config: dict[str, Any]
    row_tokens: int
    document_tokens: int
    rows: int = 1  # of a rank and step


SPECIAL = {"bos_token_id": 0, "eos_token_id": 1}
SHAPES = {
    "10m": Shape(
        config={
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": 8192,
            "max_position_embeddings": 2048,
            **SPECIAL,
        },
        row_tokens=2048,
        document_tokens=256,
    ),
    "32m": Shape(
        config={
            "hidden_size": 512,
            "intermediate_size": 1376,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "vocab_size": 8192,
            "max_position_embeddings": 2048,
            **SPECIAL,
        },
        row_tokens=2048,
        document_tokens=256,
    ),
    "1b": Shape(  # Llama 3.2 1B
        config={
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128_256,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            **SPECIAL,
        },
        row_tokens=4096,
        document_tokens=512,
        rows=2,
    ),
}
TRAINED_SHARE = 0.6
LEARNING_RATE = 1e-4


@dataclass
class Taken:
    """What steps took, and what they computed."""

    losses: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def time(self, step: Callable[[], float]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.losses.append(step())
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(time.process_time() - cpu)

    def write(self, path: Path) -> None:
        import torch

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = torch.cuda.max_memory_allocated() // 1024 if torch.cuda.is_available() else peak
        path.write_text(json.dumps({**vars(self), "peak_mib": round(peak / 1024)}))


def document_lengths(shape: Shape, number: int) -> list[int]:
    """Return the lengths of a row's documents, from a quarter to four times the usual one; there is no padding."""
    import numpy as np

    usual = shape.document_tokens
    generator = np.random.default_rng(number)
    drawn = np.clip(generator.lognormal(np.log(usual), 0.5, size=64), usual / 4, usual * 4).astype(int)
    ends = np.minimum(np.cumsum(drawn), shape.row_tokens)
    lengths: list[int] = np.diff(ends, prepend=0).tolist()
    return [length for length in lengths if length]


def batch_of(shape: Shape, number: int) -> Any:
    """Return a micro batch: the first 40 % of each document are its prompt, the rest is trained."""
    import torch

    from training.step.batches import micro_batch_of

    lengths = [document_lengths(shape, number * shape.rows + row) for row in range(shape.rows)]
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(2, shape.config["vocab_size"], (shape.rows, shape.row_tokens), generator=generator)
    masks = [
        torch.cat([torch.arange(length) >= max(1, round(length * (1 - TRAINED_SHARE))) for length in row])
        for row in lengths
    ]
    return micro_batch_of(ids, torch.stack(masks), lengths, index=number)


def tokens_of_step(shape: Shape, step: int, world: World) -> int:
    """Return how many tokens the rows of all ranks train."""
    numbers = range(step * world.size, (step + 1) * world.size)
    return sum(len(batch_of(shape, number).trained.targets) for number in numbers)


def labels_of(batch: Any) -> Any:
    return batch.input_ids.masked_fill(~batch.loss_mask, -100)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a rank is to measure."""

    world: World
    shape: Shape
    precision: Any
    steps: int

    def batch(self, step: int) -> Any:
        return batch_of(self.shape, step * self.world.size + self.world.rank)


def ours(job: Job, taken: Taken, *, as_before: bool) -> None:
    """Take steps with our engine; `as_before`, with a dense mask and the logits of all tokens."""
    from transformers import LlamaConfig

    from benchmarks.plans import plan_of
    from training.config import TrainConfig
    from training.models.new_weights import NewWeights
    from training.models.source import skeleton_of
    from training.step.packed_model import Isolation
    from training.zero.ds_config import deepspeed_config, read_template
    from training.zero.engine import ZeroEngine, join_world

    world, shape = job.world, job.shape
    join_world(world)
    train = TrainConfig(
        steps=1000,
        global_batch_rows=world.size * shape.rows,
        micro_batch_rows=shape.rows,
        learning_rate=LEARNING_RATE,
        precision=job.precision,
    )
    plan = replace(
        plan_of(train, world.size, shape.row_tokens, steps=1000),
        micro_batch_rows=shape.rows,
        global_batch_rows=train.global_batch_rows,
    )
    config = LlamaConfig(**shape.config)
    engine = ZeroEngine(config, train, plan, deepspeed_config(read_template(None), train, plan), world)
    engine.start_from(NewWeights(skeleton_of(config), seed=0))
    if as_before:
        engine.model.isolate(Isolation.BY_MASK)
        engine.model.rule = None
    else:
        engine.check_isolation([job.batch(0)])
    for step in range(job.steps):
        batch, tokens = job.batch(step), tokens_of_step(shape, step, world)
        taken.time(lambda: engine.step(step, [batch], tokens, LEARNING_RATE, lambda stats: None).loss)  # noqa: B023


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

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = plain_model(job.shape)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step_of(batch: Any) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bf16"):
            loss = parallel(
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


ZERO3 = {
    "zero_optimization": {"stage": 3, "overlap_comm": True, "contiguous_gradients": True},
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


def trainer(job: Job, taken: Taken) -> None:
    """transformers' Trainer with DeepSpeed's ZeRO-3 as it is configured by default, on the same rows with positions."""
    import deepspeed
    import torch
    import transformers

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled: minutes, not what is asked
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    model = plain_model(job.shape)  # before the arguments: they let transformers cut what is made after them
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True  # it believes that bf16 needs a GPU

    class Rows(torch.utils.data.Dataset):  # type: ignore[misc,name-defined]
        def __len__(self) -> int:
            return job.world.size * job.steps * job.shape.rows

        def __getitem__(self, index: int) -> dict[str, Any]:
            number, row = divmod(index, job.shape.rows)
            batch = batch_of(job.shape, number)
            labels = labels_of(batch)[row]
            return {"input_ids": batch.input_ids[row], "position_ids": batch.position_ids[row], "labels": labels}

    class InOrder(transformers.Trainer):  # type: ignore[misc,name-defined]
        def _get_train_sampler(self, *given: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, *given: Any, **named: Any) -> Any:
            loss = super().training_step(*given, **named)
            taken.losses.append(float(loss))
            return loss

    class Clock(transformers.TrainerCallback):  # type: ignore[misc,name-defined]
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
            "train_micro_batch_size_per_gpu": job.shape.rows,
            "bf16": {"enabled": job.precision == "bf16"},
        },
        optim="adamw_torch_fused",
        disable_tqdm=True,
    )
    InOrder(model=model, args=arguments, train_dataset=Rows(), callbacks=[Clock()]).train()


def main(variant: str, output: str, shape: str, precision: str, steps: str) -> None:
    world = read_world()
    assert world is not None
    enter_world(world)
    job, taken = Job(world=world, shape=SHAPES[shape], precision=precision, steps=int(steps)), Taken()
    if variant.startswith("shardline"):
        ours(job, taken, as_before=variant.endswith("before"))
    else:
        {"trainer": trainer, "ddp": ddp}[variant](job, taken)
    taken.write(Path(f"{output}-{world.rank}.json"))


if __name__ == "__main__":
    main(*sys.argv[1:])
