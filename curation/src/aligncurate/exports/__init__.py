"""Formats that others read: one short file each, all the same to the stage."""
