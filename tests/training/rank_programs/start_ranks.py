"""One rank of the trials that test_start looks at.

    python tests/training/rank_programs/start_ranks.py OUTPUT MODEL SHARDS

It starts engines and keeps what a start leaves in the process, and what it says of a DeepSpeed that lacks something.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cluster.environment import enter_world, read_world
from tests.training.rank_programs.ranks import ODD_GPT2, Trials

FOLDER = Path(__file__).resolve().parents[3] / "ds_configs"
NEW = {"new": {"model_type": "gpt2", "config": ODD_GPT2}}


def template(stage: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"zero{stage}.json").read_text())
    zero = found["zero_optimization"]
    zero |= {key: 1_000_000 for key in zero if key.endswith("bucket_size")}
    return found


def refusal(trials: Trials, stage: int, owner: type, name: str) -> str:
    """Return the error of a start without one method of DeepSpeed's optimizer."""
    from cluster.errors import ClusterError

    method = getattr(owner, name)
    delattr(owner, name)
    try:
        trials.engine(NEW, template(stage), micro_batch_rows=1)
    except ClusterError as error:
        return str(error)
    finally:
        setattr(owner, name, method)
    return "none"


def main(output: str, model: str, shards: str) -> None:
    world = read_world()
    assert world is not None
    enter_world(world)
    import deepspeed
    import torch

    from training.zero.engine import join_world, leave_world

    ops = dict(deepspeed.ops.__compatible_ops__)
    compiling = torch.compile
    join_world(world)
    trials = Trials(Path(output), Path(model), Path(shards), world)
    engine, _, _ = trials.engine(NEW, template(3), micro_batch_rows=1)
    compiler_is_loaded = "torch._inductor.compile_fx" in sys.modules
    other, _, _ = trials.engine(NEW, template(2), micro_batch_rows=1)
    trials.keep_facts(
        "start",
        compiler_is_loaded=compiler_is_loaded,
        compile_is_restored=torch.compile is compiling,
        ops_are_restored=deepspeed.ops.__compatible_ops__ == ops,
        shm_comm_is_compiled=deepspeed.comm.comm.cdb.shm_comm_op is not None,
        refusals={
            "_get_norm_groups": refusal(trials, 3, type(engine.optimizer), "_get_norm_groups"),
            "_wait_for_offload_copies": refusal(trials, 2, type(other.optimizer), "_wait_for_offload_copies"),
        },
    )
    leave_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
