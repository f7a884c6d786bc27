"""Contract checks: each file checks one promise and continues after a fault."""
