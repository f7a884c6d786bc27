"""Commands: one short file each, which parses options, calls one library function and prints."""
