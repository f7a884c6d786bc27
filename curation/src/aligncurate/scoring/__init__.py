"""A scoring run: its specification, models, preprocessing, scorer and workers."""
