"""The run folder and its model card."""
