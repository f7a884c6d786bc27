"""Loading a finished run or an export, and answering with it."""
