"""Selecting and copying the rows that a stage keeps."""
