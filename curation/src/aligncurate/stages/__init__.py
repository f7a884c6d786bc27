"""One file per command, called after its verb: each reads a dataset and writes one."""
