"""What a run will cost: memory per rank, step time, checkpoints and goodput, by arithmetic alone.

Nothing here imports torch or looks at a machine. The results are predictions; how far they are from published runs is
in speed.py and docs/scale.md.
"""
