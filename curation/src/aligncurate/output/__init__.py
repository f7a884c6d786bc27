"""Output folder of a stage: its lock, location and shards."""
