"""Pure functions and the model: nothing here knows of datasets, commands or clusters."""
