"""Ablations: runs that differ in one setting, over several seeds, and their differences.

- `design`: a YAML file of variants and seeds; two ship, `demo` and `paper`.
- `runs`: the runs of a design; variants share a pre-training where it is the same.
- `score`: the held-out questions that every run answers; loss and right answers.
- `runner`: trains and scores one run after the other; finished runs are reused.
- `compare`: means, and differences paired by seed; `report`: tables and a figure of them.
"""
