"""Load a finished run or an export, and generate answers with it."""
