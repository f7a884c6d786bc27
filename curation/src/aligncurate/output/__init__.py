"""Output folder of a stage: its location and shards."""
