"""Pure functions and the model, independent of datasets, commands and clusters."""
