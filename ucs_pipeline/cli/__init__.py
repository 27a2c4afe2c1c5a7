"""The command `ucs`."""
