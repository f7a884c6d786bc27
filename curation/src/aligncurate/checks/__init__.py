"""Whether a dataset keeps the contract: each file checks one promise and goes on after a fault."""
