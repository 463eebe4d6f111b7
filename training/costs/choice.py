"""Where the states of a run lie, chosen by the memory that is there: the ZeRO stage, and what is offloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from training.costs.layouts import HOST_SHARE
from training.costs.memory import Layout, Memory, Offload, memory_of, usable
from training.costs.shapes import ModelShape

DEFAULT: tuple[int, Offload] = (3, "none")  # without a GPU, and of runs from before there was a choice
CHOICES: Sequence[tuple[int, Offload]] = ((1, "none"), (2, "none"), (3, "none"), (2, "optimizer"), (3, "all"))


@dataclass(frozen=True, kw_only=True)
class MachineMemory:
    """Bytes of the smallest GPU and of the host with the least memory free, and how many ranks share a host."""

    gpu: float
    host: float
    ranks_per_host: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A stage with what is offloaded, and why it is that one."""

    stage: int
    offload: Offload
    why: str
    fits: bool = True

    def as_record(self) -> dict[str, object]:
        """Return what a run keeps of it."""
        return {"stage": self.stage, "offload": self.offload}

    def as_text(self) -> str:
        """Return it as a line of the plan."""
        offload = {"none": "", "optimizer": ", optimizer states on the host", "all": ", all states on the host"}
        return f"ZeRO         stage {self.stage}{offload[self.offload]}: {self.why}"


def choose(
    shape: ModelShape,
    layout: Layout,
    machine: MachineMemory | None,
    *,
    stage: int | None = None,
    before: Mapping[str, object] | None = None,
) -> Choice:
    """Return the lowest stage that is predicted to fit, without offload if one does.

    `layout` says the rest. `machine` is None where ranks have no GPU, `stage` is fixed by the YAML, and `before` is
    what a run that resumes has recorded: it is kept while it fits, so that the run keeps its bits.
    """
    if machine is None:
        why = "without a GPU, always 3" if stage is None else "as train.zero_stage says"
        return Choice(stage=stage or DEFAULT[0], offload="none", why=why)
    open_ones = [one for one in CHOICES if stage in (None, one[0])]
    kept = next((one for one in open_ones if before == {"stage": one[0], "offload": one[1]}), None)
    for one in [kept, *open_ones] if kept else open_ones:
        memory = memory_of(shape, replace(layout, stage=one[0], offload=one[1]))
        if fits(memory, machine):
            return Choice(stage=one[0], offload=one[1], why=reason(memory, machine, stage, is_kept=one == kept))
    # What is kept on the host stays there: free memory comes and goes, and the run could not have begun without it.
    plain = kept if kept and kept[1] != "none" else (stage or DEFAULT[0], DEFAULT[1])
    memory = memory_of(shape, replace(layout, stage=plain[0], offload=plain[1]))
    why = f"predicted not to fit, nor anything else: {told(memory, machine)}"
    return Choice(stage=plain[0], offload=plain[1], why=why, fits=False)


def fits(memory: Memory, machine: MachineMemory) -> bool:
    on_host = memory.host * machine.ranks_per_host
    return memory.gpu <= usable(machine.gpu) and on_host <= HOST_SHARE * machine.host


def reason(memory: Memory, machine: MachineMemory, stage: int | None, *, is_kept: bool) -> str:
    if is_kept:
        return f"as in the attempt before, and it fits: {told(memory, machine)}"
    lead = "the lowest that fits" if stage is None else "as train.zero_stage says"
    return f"{lead}: {told(memory, machine)}"


def told(memory: Memory, machine: MachineMemory) -> str:
    text = f"{memory.gpu / 1e9:.1f} of {machine.gpu / 1e9:.1f} GB a GPU predicted"
    if memory.host:
        text += f", {memory.host * machine.ranks_per_host / 1e9:.1f} of {machine.host / 1e9:.1f} GB a host"
    return text
