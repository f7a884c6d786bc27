"""One file per command; each reads a dataset and writes one."""
