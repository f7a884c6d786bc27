"""Near-duplicate pairs: fingerprints, neighbours, recall, components."""
