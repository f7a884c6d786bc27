"""Token ids and labels of conversations."""
