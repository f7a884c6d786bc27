"""Choosing the rows that a stage keeps, and copying them."""
