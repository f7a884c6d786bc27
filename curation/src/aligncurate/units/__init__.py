"""Resumable work: units, their records, and the loop that runs them."""
