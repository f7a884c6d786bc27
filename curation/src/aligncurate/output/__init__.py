"""The folder that a stage writes: its lock, its location, its shards."""
