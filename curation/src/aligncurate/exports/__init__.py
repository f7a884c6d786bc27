"""Export formats: one file each, with the same interface for the stage."""
