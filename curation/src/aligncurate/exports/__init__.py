"""Export formats, one file each, with a common interface."""
