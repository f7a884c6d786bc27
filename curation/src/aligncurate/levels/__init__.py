"""Edges between levels, and labelling of pairs."""
