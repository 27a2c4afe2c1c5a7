"""Entries read back from the stream, and compared with the table."""
