"""Report on the gate: its weights by type of question, and the effect of forcing a level.

- `questions`: the questions of a dataset, with their types.
- `measure`: gate weights of each question, and answers with a forced level.
- `matrix`: losses by own and by forced level.
- `summary`: means, entropy, correlations; `report`: these as data and as a page.
- `explain`: all of it in one call.
"""
