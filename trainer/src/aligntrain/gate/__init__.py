"""What the gate does: the weights that it gives the levels, and what they change.

- `cases`: the questions of a dataset, with their types.
- `measure`: the weights of each; `sweep`: what each level does when it is forced.
- `summary`: means, entropy, correlations; `record`, `page`: these as data and as a page.
- `explain`: all of it, in one call.
"""
