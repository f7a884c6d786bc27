"""The edges between levels, and every pair's level."""
