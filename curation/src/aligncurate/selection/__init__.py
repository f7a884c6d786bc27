"""Which rows a stage keeps, and copying them."""
