"""Commands: one short file each that parses, calls one library function and prints."""
