"""Parameters, memory and steps of a run, before anything is loaded."""
