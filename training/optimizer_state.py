"""What a run keeps of each trained parameter, declared once; without torch, as plans and checkpoints need it.

Another optimizer changes this file and training/zero/adamw.py, which builds it, and nothing else.
"""

from __future__ import annotations

MASTER = "master"  # the fp32 weight that updates are added to
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, as torch names them in an optimizer's state
KINDS = (MASTER, *MOMENTS)  # in the order of a checkpoint's files
ITEM_BYTES = 4  # all of them are fp32
STATE_BYTES_PER_PARAMETER = ITEM_BYTES * len(KINDS)
