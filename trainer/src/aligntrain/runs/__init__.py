"""Run folder and model card."""
