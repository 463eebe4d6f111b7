"""One rank of `step`: the same packed rows, taken by us, by transformers' Trainer with ZeRO-3 and by a bare DDP loop.

    python -m benchmarks.step_ranks VARIANT OUTPUT PRECISION STEPS

It writes OUTPUT-RANK.json: the loss of the first step, the seconds and CPU-seconds of each, the largest memory.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.environment import World, enter_world, read_world

LLAMA = {  # 32 million parameters
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
ROW_TOKENS, DOCUMENT_TOKENS, TRAINED_SHARE = 2048, 256, 0.6
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
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        path.write_text(json.dumps({**vars(self), "peak_mib": round(peak)}))


def document_lengths(number: int) -> list[int]:
    """Return the lengths of a row's documents: about 256 tokens, from a quarter to four times that, no padding."""
    import numpy as np

    generator = np.random.default_rng(number)
    drawn = np.clip(generator.lognormal(np.log(DOCUMENT_TOKENS), 0.5, size=64), 64, 1024).astype(int)
    ends = np.minimum(np.cumsum(drawn), ROW_TOKENS)
    lengths: list[int] = np.diff(ends, prepend=0).tolist()
    return [length for length in lengths if length]


def row(number: int) -> Any:
    """Return a row as a micro batch: the first 40 % of each document are its prompt, the rest is trained."""
    import torch

    from training.batches import micro_batch_of

    lengths = document_lengths(number)
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(2, LLAMA["vocab_size"], (1, ROW_TOKENS), generator=generator)
    masks = [torch.arange(length) >= max(1, round(length * (1 - TRAINED_SHARE))) for length in lengths]
    return micro_batch_of(ids, torch.cat(masks)[None], [lengths], index=number)


def tokens_of_step(step: int, world: World) -> int:
    """Return how many tokens the rows of all ranks train."""
    return sum(len(row(step * world.size + rank).trained.targets) for rank in range(world.size))


def labels_of(batch: Any) -> Any:
    return batch.input_ids.masked_fill(~batch.loss_mask, -100)


def ours(world: World, precision: str, steps: int, taken: Taken, *, as_before: bool) -> None:
    """Take steps with our engine; `as_before`, with a dense mask and the logits of all tokens."""
    import torch
    from transformers import LlamaConfig

    from benchmarks.plans import plan_of
    from training.config import TrainConfig
    from training.ds_config import deepspeed_config, read_template
    from training.engine import Engine, join_world
    from training.model import skeleton_of
    from training.packed_model import Isolation
    from training.weights import NewWeights

    join_world(world)
    train = TrainConfig(steps=1000, global_batch_rows=world.size, learning_rate=LEARNING_RATE, precision=precision)  # type: ignore[arg-type]
    plan = plan_of(train, world.size, ROW_TOKENS, steps=1000)
    config = LlamaConfig(**LLAMA)
    engine = Engine(config, train, plan, deepspeed_config(read_template(None), train, plan), world)
    engine.start_from(NewWeights(skeleton_of(config), seed=0))
    if as_before:
        engine.model.isolate(Isolation.BY_MASK)
        engine.model.rule = None
    else:
        engine.prove([row(0)])
    torch.manual_seed(0)
    for step in range(steps):
        batch, tokens = row(step * world.size + world.rank), tokens_of_step(step, world)
        taken.time(lambda: engine.step(step, [batch], tokens, LEARNING_RATE, lambda stats: None).loss)  # noqa: B023


def plain_model() -> Any:
    """Return the model with the first weights that our engine has."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from training.model import skeleton_of
    from training.weights import NewWeights

    config = LlamaConfig(**LLAMA)
    weights = NewWeights(skeleton_of(config), seed=0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            part = weights.part(name, tuple(parameter.shape), 0, parameter.numel())
            parameter.copy_(part.reshape(parameter.shape))
    return model


def ddp(world: World, precision: str, steps: int, taken: Taken) -> None:
    """A bare loop: DistributedDataParallel, fused AdamW, the model's own loss; bf16 is torch's autocast."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = plain_model()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step_of(batch: Any) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = parallel(
                input_ids=batch.input_ids, position_ids=batch.position_ids, labels=labels_of(batch), use_cache=False
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    for step in range(steps):
        batch = row(step * world.size + world.rank)
        taken.time(lambda: step_of(batch))  # noqa: B023


ZERO3 = {
    "zero_optimization": {"stage": 3, "overlap_comm": True, "contiguous_gradients": True},
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


def trainer(world: World, precision: str, steps: int, taken: Taken) -> None:
    """transformers' Trainer with DeepSpeed's ZeRO-3 as it is configured by default, on the same rows with positions."""
    import deepspeed
    import torch
    import transformers

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled: minutes, not what is asked
    torch.set_num_threads(1)
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True  # it believes that bf16 needs a GPU

    class Rows(torch.utils.data.Dataset):  # type: ignore[misc,name-defined]
        def __len__(self) -> int:
            return world.size * steps

        def __getitem__(self, index: int) -> dict[str, Any]:
            batch = row(index)
            labels = labels_of(batch)[0]
            return {"input_ids": batch.input_ids[0], "position_ids": batch.position_ids[0], "labels": labels}

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
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=LEARNING_RATE,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        bf16=precision == "bf16",
        deepspeed={**ZERO3, "bf16": {"enabled": precision == "bf16"}},
        optim="adamw_torch_fused",
        disable_tqdm=True,
    )
    InOrder(model=plain_model(), args=arguments, train_dataset=Rows(), callbacks=[Clock()]).train()


def variants() -> Iterator[str]:
    yield from ("shardline", "shardline as before", "trainer", "ddp")


def main(variant: str, output: str, precision: str, steps: str) -> None:
    world = read_world()
    assert world is not None
    enter_world(world)
    taken = Taken()
    if variant.startswith("shardline"):
        ours(world, precision, int(steps), taken, as_before=variant.endswith("before"))
    else:
        {"trainer": trainer, "ddp": ddp}[variant](world, precision, int(steps), taken)
    taken.write(Path(f"{output}-{world.rank}.json"))


if __name__ == "__main__":
    main(*sys.argv[1:])
