"""Ablations: runs that differ in one thing, over several seeds, and what the differences are worth.

- `design`: a YAML file of variants and seeds; two ship, `demo` and `paper`.
- `cells`: the runs that it comes to, pre-training shared where it is the same.
- `asked`: the held-out questions that all of them are asked; `judge`: asking them.
- `perform`: making them, one after the other; what is finished is taken over.
- `compare`: means, and differences paired by seed; `record`, `figure`: as tables and as a figure.
"""
